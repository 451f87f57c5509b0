"""Losses as pure functions: pieces of logits, hidden states or log-probabilities in, one value a row out.

`train.linear_loss` calls them on pieces; sums, masks and counts are the objective's business (train/objectives.py).
Where a temperature T is named, both sides are softened by it and the value is multiplied by T^2, so that the size of
gradients does not depend on it (Hinton, Vinyals and Dean 2015).

Shapes: n rows (tokens), V vocabulary, H hidden width, P preference pairs.
"""

from __future__ import annotations

from math import log
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def cross_entropy(logits_nV: Tensor, targets_n: Tensor) -> Tensor:
    """-log p(target), [n], in nats."""
    return F.cross_entropy(logits_nV, targets_n, reduction="none")


def token_log_probs(logits_nV: Tensor, targets_n: Tensor) -> Tensor:
    """log p(target), [n]: what sums up to a sequence's log-probability."""
    return -cross_entropy(logits_nV, targets_n)


def forward_kl(student_nV: Tensor, teacher_nV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of two sets of logits, [n]: the student covers all the teacher does."""
    student, teacher = _softened(student_nV, teacher_nV, temperature)
    return _kl(teacher, student) * temperature**2


def reverse_kl(student_nV: Tensor, teacher_nV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher), [n]: the student keeps to what the teacher does (MiniLLM, Gu et al. 2024)."""
    student, teacher = _softened(student_nV, teacher_nV, temperature)
    return _kl(student, teacher) * temperature**2


def generalised_jsd(student_nV: Tensor, teacher_nV: Tensor, *, beta: float, temperature: float = 1.0) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, p teacher, q student (GKD, Agarwal 2024).

    At beta 0 and 1 that is 0; there it is by definition what it tends to after division by beta or 1 - beta: forward
    and reverse KL. Raises ValueError for a beta outside [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta: sought a number in [0, 1], found {beta}")
    if beta == 0.0:
        return forward_kl(student_nV, teacher_nV, temperature=temperature)
    if beta == 1.0:
        return reverse_kl(student_nV, teacher_nV, temperature=temperature)
    student, teacher = _softened(student_nV, teacher_nV, temperature)
    mixed = torch.logaddexp(teacher + log(beta), student + log(1.0 - beta))
    return (beta * _kl(teacher, mixed) + (1.0 - beta) * _kl(student, mixed)) * temperature**2


def cosine_distance(student_nH: Tensor, teacher_nH: Tensor) -> Tensor:
    """1 - cos of hidden states of one width (a projection's output where the student's differs), [n]."""
    return 1.0 - F.cosine_similarity(student_nH, teacher_nH, dim=-1)


def mean_squared(student_nH: Tensor, teacher_nH: Tensor) -> Tensor:
    """Squared distance per hidden number, [n]."""
    return (student_nH - teacher_nH).square().mean(-1)


PreferenceKind = Literal["sigmoid", "ipo"]


def preference(
    margins_P: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0, kind: PreferenceKind = "sigmoid"
) -> Tensor:
    """DPO's loss of each pair, [P] (Rafailov et al. 2023), from `preference_margins`: ln 2 where the margin is 0.

    label_smoothing: the share of pairs taken to be labelled the wrong way round (conservative DPO, Mitchell 2023).
    kind ipo: the squared distance of the margin from 1 / (2 beta) (Azar et al. 2024), which has a minimum; it takes
    margins of mean log-probabilities and no label smoothing. Raises ValueError for both together.
    """
    if kind == "ipo":
        if label_smoothing:
            raise ValueError("ipo takes no label_smoothing: its target margin already is finite")
        return (margins_P - 1.0 / (2.0 * beta)).square()
    scaled = beta * margins_P
    return -(1.0 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)


def preference_margins(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor
) -> Tensor:
    """How much more than the reference the model prefers the chosen answer, [P]; all log-probabilities summed."""
    return (chosen_P - rejected_P) - (reference_chosen_P - reference_rejected_P)


def chosen_nll(chosen_P: Tensor, chosen_len_P: Tensor) -> Tensor:
    """Mean negative log-probability of the chosen answer, [P]: RPO adds alpha times it (Pang et al. 2024).

    It keeps the chosen answer's own probability from falling with the rejected one's.
    """
    return -chosen_P / chosen_len_P


def _softened(student_nV: Tensor, teacher_nV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student = F.log_softmax(student_nV / temperature, dim=-1)
    return student, F.log_softmax(teacher_nV / temperature, dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) a row."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
