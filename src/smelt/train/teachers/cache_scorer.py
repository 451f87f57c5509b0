"""A decoder's distributions as records of a teacher cache: drawn ids, or the top k and the rest.

Shapes: n tokens of a piece, k ids kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from smelt.data.batches import Batch
from smelt.train.teachers.cache_format import CacheSettings, Kept, batch_digest
from smelt.train.teachers.online import DecoderTeacher
from smelt.train.teachers.signals import Dense

_PIECE_NUMBERS = 1 << 22  # log-probabilities held at once: 16 MiB


class ModelScorer:
    """A decoder's distributions. Draws depend on (settings.seed, batch): a cache built in pieces is the same cache."""

    def __init__(self, teacher: DecoderTeacher, device: torch.device) -> None:
        self.teacher, self.device = teacher, device

    @property
    def fingerprint(self) -> str:
        """The teacher's."""
        return self.teacher.fingerprint

    @property
    def vocab_len(self) -> int:
        """The teacher's."""
        return self.teacher.vocab_len

    def score(self, batches: Sequence[Batch], settings: CacheSettings) -> list[Kept]:
        """One forward pass a batch."""
        return [self._score(batch, settings) for batch in batches]

    @torch.no_grad()
    def _score(self, batch: Batch, settings: CacheSettings) -> Kept:
        signal = self.teacher.signal(batch, self.device)
        generator = torch.Generator(self.device).manual_seed(
            int(batch_digest(batch)[:14], 16) ^ (settings.seed * 0x9E3779B1)
        )
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        entropy = 0.0
        piece_len = max(64, _PIECE_NUMBERS // self.vocab_len)
        for start in range(0, len(signal.hidden), piece_len):
            log_p = _log_probs(signal, slice(start, start + piece_len), settings.temperature)
            entropy -= float((log_p.exp() * log_p).sum(dtype=torch.float64))
            found.append(draw(log_p, settings, generator) if settings.method == "sampled" else top(log_p, settings.k))
        if not found:  # nothing learned here
            none = np.zeros((0, settings.k))
            return Kept(none.astype(np.int64), none.astype(np.float32), np.zeros(0, np.float32), 0.0)
        ids, weights, rest = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        return Kept(ids, weights, rest, entropy)


def _log_probs(signal: Dense, rows: slice, temperature: float) -> Tensor:
    return (signal.logits(rows) / temperature).log_softmax(-1)


def draw(log_p_nV: Tensor, settings: CacheSettings, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random-sampling distillation: ids [n, k] (-1: merged into an equal one), weights * k [n, k], no rest [n].

    The k draws with replacement come from softmax(proposal * log p); an id drawn c times weighs c * p / (its chance).
    """
    log_chance_nV = (log_p_nV * settings.proposal).log_softmax(-1)
    drawn_nk = torch.multinomial(log_chance_nV.exp(), settings.k, replacement=True, generator=generator)
    drawn_nk = drawn_nk.sort(dim=-1).values
    fresh_nk = torch.ones_like(drawn_nk, dtype=torch.bool)
    fresh_nk[:, 1:] = drawn_nk[:, 1:] != drawn_nk[:, :-1]
    group_nk = fresh_nk.cumsum(-1) - 1
    ones_nk = torch.ones_like(drawn_nk, dtype=log_p_nV.dtype)
    counts_nk = torch.zeros_like(ones_nk).scatter_add_(1, group_nk, ones_nk)
    ids_nk = torch.full_like(drawn_nk, -1).scatter_(1, group_nk, drawn_nk)
    at_nk = ids_nk.clamp_min(0)
    importance_nk = (log_p_nV.gather(1, at_nk) - log_chance_nV.gather(1, at_nk)).exp()
    return ids_nk, (counts_nk * importance_nk).float(), torch.zeros(len(ids_nk), device=ids_nk.device)


def top(log_p_nV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k likeliest ids, their log-probabilities, and the log-mass of the others, each [n, k], [n, k], [n]."""
    best = log_p_nV.topk(k, dim=-1)
    log_rest_n = log_p_nV.scatter(1, best.indices, -torch.inf).logsumexp(-1)
    return best.indices, best.values, log_rest_n
