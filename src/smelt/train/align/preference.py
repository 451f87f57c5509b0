"""What a model is aligned by, as values for the one loop: answers shown, and answers preferred.

Preference: DPO and its kin (Rafailov et al. 2023, arXiv:2305.18290). Shapes: P pairs of a batch, N learned tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smelt.core.errors import InvalidRequestError
from smelt.data.batches import Batch
from smelt.data.preferences import PairBatch
from smelt.model.decoder import Decoder
from smelt.train.linear_loss import chunked_loss, chunked_values
from smelt.train.losses import (
    PreferenceKind,
    chosen_nll,
    cross_entropy,
    preference,
    preference_margins,
    token_log_probs,
)
from smelt.train.objectives import LossSum, learned_hidden, on_device


@dataclass(frozen=True, kw_only=True)
class AnswerTokens:
    """`train.objectives.Objective`: cross-entropy of learned tokens, and how often the model's first guess is right.

    The latter is what OpenAI calls token accuracy; it is reported as `accuracy`.
    """

    name: str = "answers"

    def __call__(self, model: Decoder, batch: Batch, device: torch.device) -> LossSum:
        """Sum over the learned tokens of one batch."""
        targets = batch.targets[batch.targets >= 0]
        targets_N, hits = on_device(targets, device), [torch.zeros((), dtype=torch.int64, device=device)]
        hidden_NH = learned_hidden(model, batch, device)

        def piece(logits_nV: Tensor, rows: slice) -> Tensor:
            hits[0] = hits[0] + (logits_nV.detach().argmax(-1) == targets_N[rows]).sum()
            return cross_entropy(logits_nV, targets_N[rows]).sum()

        total = chunked_loss(hidden_NH, model.head_weight, piece)
        return LossSum(total, float(len(targets)), {"accuracy": float(hits[0])})


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """beta: how strongly the model is held to the reference (small: loosely). label_smoothing, kind: see losses.py.

    rpo_alpha: weight of the chosen answer's mean negative log-probability beside the preference (Pang et al. 2024); it
    keeps that probability from falling together with the rejected one's. Raises InvalidRequestError out of range.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    kind: PreferenceKind = "sigmoid"
    rpo_alpha: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta <= 2.0:
            raise InvalidRequestError(f"beta is {self.beta}; sought above 0 and up to 2", param="beta")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise InvalidRequestError(f"label_smoothing is {self.label_smoothing}; sought from 0 to below 0.5")
        if self.kind == "ipo" and self.label_smoothing:
            raise InvalidRequestError("ipo takes no label_smoothing: its target margin already is finite")
        if self.rpo_alpha < 0.0:
            raise InvalidRequestError(f"rpo_alpha is {self.rpo_alpha}; sought 0 or more")


@dataclass(frozen=True, kw_only=True)
class PairPreference:
    """`train.objectives.Objective` over `PairBatch`: the loss of each pair, counted by pair.

    Margins are of summed log-probabilities, for ipo of mean ones. Reported besides: both rewards (beta times what the
    model adds to the reference), their margin, the share of pairs with a positive one, both answers' log-probability.
    """

    config: PreferenceConfig = PreferenceConfig()

    @property
    def name(self) -> str:
        """Kind and settings."""
        c = self.config
        return f"preference({c.kind}, beta={c.beta:g}, smooth={c.label_smoothing:g}, rpo={c.rpo_alpha:g})"

    def __call__(self, model: Decoder, batch: Batch, device: torch.device) -> LossSum:
        """Sum over the pairs. Raises InvalidRequestError for a batch without pairs or without references."""
        if not isinstance(batch, PairBatch) or batch.references is None:
            raise InvalidRequestError("preference tuning needs batches of pairs with reference log-probabilities")
        sums, lengths = answer_log_probs(model, batch, device)
        references = on_device(batch.references, device)
        if self.config.kind == "ipo":
            sums, references = sums / lengths, references / lengths
        margins = preference_margins(sums[:, 0], sums[:, 1], references[:, 0], references[:, 1])
        c = self.config
        losses = preference(margins, beta=c.beta, label_smoothing=c.label_smoothing, kind=c.kind)
        if c.rpo_alpha:
            whole = sums[:, 0] * (lengths[:, 0] if c.kind == "ipo" else 1.0)
            losses = losses + c.rpo_alpha * chosen_nll(whole, lengths[:, 0])
        return LossSum(losses.sum(), float(len(losses)), _logs(c.beta, sums, references, margins))


def answer_log_probs(model: Decoder, batch: PairBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of both answers of each pair, [P, 2], and their lengths in tokens; both in float64.

    Float64, as a sum over thousands of tokens less another such sum is what counts.
    """
    assert batch.segment_ids is not None
    learned = batch.targets >= 0
    owners = batch.segment_ids[learned].astype(np.int64)
    targets_N, owners_N = on_device(batch.targets[learned], device), on_device(owners, device)
    hidden_NH = learned_hidden(model, batch, device)

    def piece(logits_nV: Tensor, rows: slice) -> Tensor:
        return token_log_probs(logits_nV, targets_N[rows])

    values_N = chunked_values(hidden_NH, model.head_weight, piece).double()
    zeros = values_N.new_zeros(2 * batch.num_pairs)
    sums = zeros.index_add(0, owners_N, values_N)
    lengths = zeros.index_add(0, owners_N, torch.ones_like(values_N))
    return sums.view(-1, 2), lengths.view(-1, 2)


def _logs(beta: float, sums: Tensor, references: Tensor, margins: Tensor) -> dict[str, float]:
    with torch.no_grad():
        rewards = beta * (sums - references).sum(0)
        return {
            "reward_chosen": float(rewards[0]),
            "reward_rejected": float(rewards[1]),
            "margin": float(beta * margins.sum()),
            "accuracy": float((margins > 0).sum()),
            "logp_chosen": float(sums[:, 0].sum()),
            "logp_rejected": float(sums[:, 1].sum()),
        }
