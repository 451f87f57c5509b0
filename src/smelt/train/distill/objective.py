"""The distillation objective, as a value the one loop takes.

Of every learned token: (1 - ratio) * cross-entropy + ratio * divergence from the teacher, both from the same logits,
in pieces; plus hidden-state terms where there are any. Where the teacher's word comes from (a model in memory, a cache,
the student's own text) is the teacher's business, not a branch here.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from smelt.core.errors import InvalidRequestError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.distill.divergence import FORWARD_KL, Divergence
from smelt.train.distill.hidden import HiddenTerms
from smelt.train.distill.on_policy import OnPolicy
from smelt.train.linear_loss import chunked_loss
from smelt.train.losses import cross_entropy
from smelt.train.objectives import LossSum, learned_hidden, on_device
from smelt.train.teachers.online import DecoderTeacher, Teacher


class Distillation(nn.Module):
    """`train.objectives.Objective`: learn a teacher's distributions.

    ratio: share of the divergence against cross-entropy; 1 is pure distillation, the best or near it in published
    sweeps. on_policy: batches on which the student's own continuations take the place of the data (no cross-entropy
    is taken there: its text is no truth). hidden: needs a DecoderTeacher. Its parameters are the projections alone.

    Raises InvalidRequestError for parts that do not go together.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        divergence: Divergence = FORWARD_KL,
        ratio: float = 1.0,
        hidden: HiddenTerms | None = None,
        on_policy: OnPolicy | None = None,
    ) -> None:
        super().__init__()
        _check(teacher, divergence, ratio, hidden=hidden, on_policy=on_policy)
        self.teacher, self.divergence, self.ratio = teacher, divergence, ratio
        self.hidden, self.on_policy = hidden, on_policy

    @property
    def name(self) -> str:
        """Everything that decides the loss, the teacher included: a run with another teacher is another run."""
        parts = [self.divergence.name, f"T={self.divergence.temperature:g}", f"ratio={self.ratio:g}"]
        if self.hidden is not None:
            match = self.hidden.match
            pairs = ",".join(f"{ours}:{theirs}" for ours, theirs in match.pairs)
            parts.append(f"{match.kind}*{match.weight:g}[{pairs}]")
        if self.on_policy is not None:
            parts.append(self.on_policy.name)
        return f"distil({', '.join(parts)}, teacher={self.teacher.fingerprint[:16]})"

    def __call__(self, model: Decoder, batch: Batch, device: torch.device) -> LossSum:
        """Sum over the learned tokens of one batch, or of the student's continuations of it."""
        ratio = self.ratio
        if self.on_policy is not None and (own := self.on_policy.continued(model, batch, device)) is not None:
            batch, ratio = own, 1.0
        index = np.flatnonzero(batch.targets.reshape(-1) >= 0)
        with ExitStack() as taps:
            ours: dict[int, Tensor] = {}
            theirs: dict[int, Tensor] = {}
            if self.hidden is not None:
                ours = taps.enter_context(self.hidden.student_tap.listening())
                theirs = taps.enter_context(self.hidden.teacher_tap.listening())
            signal = self.teacher.signal(batch, device)
            hidden_NH = learned_hidden(model, batch, device)
        targets_N = on_device(batch.targets.reshape(-1)[index], device)
        parts = {"ce": 0.0, "kd": 0.0}

        def piece(logits_nV: Tensor, rows: slice) -> Tensor:
            learnt = signal.loss(logits_nV, rows, self.divergence)
            parts["kd"] += float(learnt.detach())
            if ratio == 1.0:
                return learnt
            told = cross_entropy(logits_nV, targets_N[rows]).sum()
            parts["ce"] += float(told.detach())
            return (1 - ratio) * told + ratio * learnt

        total = chunked_loss(hidden_NH, model.head_weight, piece)
        if self.hidden is not None:
            term = self.hidden.loss(ours, theirs, on_device(index, device))
            parts["hidden"] = float(term.detach())
            total = total + term
        if ratio == 1.0:
            del parts["ce"]
        return LossSum(total, float(len(index)), parts)


def _check(
    teacher: Teacher,
    divergence: Divergence,
    ratio: float,
    *,
    hidden: HiddenTerms | None,
    on_policy: OnPolicy | None,
) -> None:
    if not 0.0 < ratio <= 1.0:
        raise InvalidRequestError(f"ratio is {ratio}; sought above 0 (0 would be plain cross-entropy) and up to 1")
    if teacher.samples_only and divergence.beta != 0.0:
        raise InvalidRequestError(f"drawn ids give forward KL only, not {divergence.name}; cache the top k instead")
    if teacher.temperature not in (None, divergence.temperature):
        raise InvalidRequestError(
            f"the cache holds distributions at temperature {teacher.temperature}, "
            f"the objective asks for {divergence.temperature}"
        )
    if not isinstance(teacher, DecoderTeacher) and (hidden is not None or on_policy is not None):
        raise InvalidRequestError("hidden-state terms and on-policy text need a teacher in memory, not a cache")
