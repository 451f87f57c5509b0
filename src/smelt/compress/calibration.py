"""Sequences that statistics are taken from: a user's text, a training shard, or what the model itself says."""

from __future__ import annotations

from dataclasses import dataclass

from smelt.data.batches import Batch


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """source: where the sequences come from, in words. digest: sha256 of the token ids. batches: in order."""

    source: str
    digest: str
    batches: tuple[Batch, ...]
