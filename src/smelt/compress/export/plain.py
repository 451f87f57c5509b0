"""What of a checkpoint other programs compute: shared layers written out, codes kept where they still say the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from smelt.checkpoint.folder import Checkpoint
from smelt.checkpoint.quantized import QuantizedWeight
from smelt.compress.share.tensors import Arrays
from smelt.compress.share.unshare import unshared
from smelt.core.decoder import MATRICES, DecoderConfig
from smelt.core.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """A decoder that every reader of its family knows. `quantized`: the matrices that are in few bits, by its names."""

    config: DecoderConfig
    tensors: Arrays
    quantized: Mapping[str, QuantizedWeight]
    notes: tuple[str, ...] = ()


def plain_of(checkpoint: Checkpoint) -> Plain:
    """The checkpoint without what only smelt computes. Raises UnsupportedError, naming it, where it cannot go."""
    config = checkpoint.config
    if config.num_privileges:
        raise UnsupportedError(
            "this model adds to each token who said it (num_privileges), and no other reader does; "
            "export one that was trained without"
        )
    shares = any(layer.weights is not None or layer.residue_rank for layer in config.layers)
    plain, tensors = unshared(config, checkpoint.tensors)
    if odd := [i for i, layer in enumerate(plain.layers) if not layer.plain]:
        raise UnsupportedError(
            f"layers {odd} attend in a way of our own (linear attention); no other reader computes it"
        )
    if not shares:
        return Plain(config=config, tensors=checkpoint.tensors, quantized=checkpoint.quantized)
    homes = _homes(config, checkpoint.quantized)
    note = f"layers share matrices: {plain.num_parameters:,} parameters are written for {config.num_parameters:,}"
    return Plain(config=plain, tensors=tensors, quantized=_Renamed(checkpoint.quantized, homes), notes=(note,))


def _homes(config: DecoderConfig, quantized: Mapping[str, QuantizedWeight]) -> dict[str, str]:
    """The stored name behind every matrix that is just what the codes say, not that and a residue."""
    homes = {name: name for name in quantized if not name.startswith("model.layers.")}
    for i, layer in enumerate(config.layers):
        for stem in MATRICES:
            home = f"model.layers.{config.home(i)}.{stem}_proj.weight"
            if home in quantized and not layer.residue_rank:
                homes[f"model.layers.{i}.{stem}_proj.weight"] = home
    return homes


class _Renamed(Mapping[str, QuantizedWeight]):
    def __init__(self, quantized: Mapping[str, QuantizedWeight], names: Mapping[str, str]) -> None:
        self._quantized, self._names = quantized, names

    def __getitem__(self, name: str) -> QuantizedWeight:
        return self._quantized[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
