"""What a teacher says about the learned tokens of a batch, in the forms it can be had: dense, sampled, top k.

A signal meets the student's logits piece by piece, inside the same chunked loss as cross-entropy, so that neither
model's [tokens, V] is ever held whole. Shapes: N learned tokens of the batch in row-major order, n of them in a piece,
k ids kept per token, H the teacher's hidden width, V rows of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smelt.train.distill.divergence import LOG_FLOOR, Divergence


class Signal(Protocol):
    """A teacher's word on N tokens."""

    def loss(self, logits_nV: Tensor, rows: slice, divergence: Divergence) -> Tensor:
        """Summed divergence of the tokens `rows` (of the N), whose student logits are given; a scalar."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """The teacher's hidden states [N, H] and its head [>= vocab_len, H]: its logits are made piece by piece."""

    hidden: Tensor
    weight: Tensor
    vocab_len: int

    def logits(self, rows: slice) -> Tensor:
        """[n, vocab_len], without gradient, in float32 or wider; padded rows of the head take no part."""
        with torch.no_grad():
            logits = F.linear(self.hidden[rows], self.weight[: self.vocab_len])
            return logits if logits.dtype == torch.float64 else logits.float()

    def loss(self, logits_nV: Tensor, rows: slice, divergence: Divergence) -> Tensor:
        """Exact."""
        return divergence.of_logits(logits_nV, self.logits(rows))


@dataclass(frozen=True, slots=True)
class Sampled:
    """Ids [N, k] drawn from the teacher and importance weights [N, k] whose expectation is its distribution.

    Random-sampling distillation (Anshumann et al. 2025, arXiv:2503.16870): loss and gradient are unbiased. Forward KL
    only: the others need the teacher's probability of ids it did not draw. entropy: the teacher's, summed over the N
    tokens in nats; it makes the value a divergence and has no gradient.
    """

    ids: Tensor
    weights: Tensor
    entropy: float
    vocab_len: int

    def loss(self, logits_nV: Tensor, rows: slice, divergence: Divergence) -> Tensor:
        """Unbiased. Raises ValueError for a divergence other than forward KL (`Distillation` refuses it earlier)."""
        if divergence.beta != 0.0:
            raise ValueError("drawn ids give forward KL only")
        log_q = _log_probs(logits_nV, self.vocab_len, divergence.temperature)
        picked_nk = log_q.gather(1, self.ids[rows])
        cross = -(self.weights[rows].to(log_q.dtype) * picked_nk).sum()
        entropy = self.entropy * len(picked_nk) / len(self.ids)  # the shares of all pieces add up to it
        price = divergence.padding_price(logits_nV, self.vocab_len)
        return (cross - entropy) * divergence.temperature**2 + price


@dataclass(frozen=True, slots=True)
class TopK:
    """The k likeliest ids [N, k], their log-probabilities [N, k], and the log-mass of all others [N] as one more class.

    The rest is compared with the student's own rest, never spread over the k (plain renormalisation makes a
    student over-confident). By the data-processing inequality the value is a lower bound of the full divergence,
    and equal to it with k = vocab_len. An id of -1 fills a place that has no token.
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor
    vocab_len: int

    def loss(self, logits_nV: Tensor, rows: slice, divergence: Divergence) -> Tensor:
        """Over k + 1 classes."""
        log_q_nV = _log_probs(logits_nV, self.vocab_len, divergence.temperature)
        ids_nk = self.ids[rows]
        there_nk = ids_nk >= 0
        log_q = log_q_nV.gather(1, ids_nk.clamp_min(0)).masked_fill(~there_nk, LOG_FLOOR)
        log_p = self.log_probs[rows].to(log_q.dtype).masked_fill(~there_nk, LOG_FLOOR)
        if ids_nk.shape[1] < self.vocab_len:
            kept_nV = torch.zeros(len(ids_nk), self.vocab_len + 1, dtype=torch.bool, device=ids_nk.device)
            kept_nV.scatter_(1, ids_nk.masked_fill(~there_nk, self.vocab_len), True)
            rest_q = log_q_nV.masked_fill(kept_nV[:, : self.vocab_len], -torch.inf).logsumexp(-1, keepdim=True)
            log_q = torch.cat([log_q, rest_q], dim=1)
            log_p = torch.cat([log_p, self.log_rest[rows].to(log_q.dtype)[:, None]], dim=1)
        return divergence.of_classes(log_q, log_p) + divergence.padding_price(logits_nV, self.vocab_len)


def _log_probs(logits_nV: Tensor, vocab_len: int, temperature: float) -> Tensor:
    """Over the real vocabulary, at the temperature."""
    return (logits_nV[:, :vocab_len] / temperature).log_softmax(-1)
