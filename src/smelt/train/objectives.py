"""What a step minimises, as a value: an objective takes the model and a batch and gives a sum and what it counts.

The loop divides the summed gradient by the summed count of a whole step, over all its batches and all ranks, so that
neither how a step is cut into batches nor how many processes share it changes what is learned.

Shapes: B rows, T tokens, N learned tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smelt.data.batches import Batch
from smelt.model.decoder import Decoder, View
from smelt.train.linear_loss import chunked_loss
from smelt.train.losses import cross_entropy


@dataclass(frozen=True, slots=True)
class LossSum:
    """total: the summed loss, a scalar tensor with a gradient. count: what it is a sum over (tokens, pairs).

    logs: further sums over the same things, reported divided by the count.
    """

    total: Tensor
    count: float
    logs: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """A loss as a value.

    Where it is an `nn.Module` its own parameters (a projection) are trained and checkpointed with the model's.
    """

    @property
    def name(self) -> str:
        """Its kind and settings, for reports and for the identity of a run: another name is another run."""
        ...

    def __call__(self, model: Decoder, batch: Batch, device: torch.device) -> LossSum:
        """The summed loss of one batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Next-token cross-entropy in nats over targets >= 0; other places never meet the head's matrix.

    first_weight: what the first token of every learned span counts against 1 for the others. It is where an answer
    decides (call or talk, which label), one token among many.
    """

    first_weight: float = 1.0

    @property
    def name(self) -> str:
        """Its kind, and its weight where it has one."""
        return "ce" if self.first_weight == 1.0 else f"ce(first={self.first_weight:g})"

    def __call__(self, model: Decoder, batch: Batch, device: torch.device) -> LossSum:
        """Weighted sum over the learned tokens of one batch; the count is the sum of the weights."""
        learned = batch.targets >= 0
        weights = np.where(first_of_span(batch)[learned], self.first_weight, 1.0).astype(np.float32)
        hidden_NH = learned_hidden(model, batch, device)
        targets_N, weights_N = on_device(batch.targets[learned], device), on_device(weights, device)

        def piece(logits_nV: Tensor, rows: slice) -> Tensor:
            return (cross_entropy(logits_nV, targets_N[rows]) * weights_N[rows]).sum()

        return LossSum(chunked_loss(hidden_NH, model.head_weight, piece), float(weights.sum(dtype=np.float64)))


def first_of_span(batch: Batch) -> NDArray[np.bool_]:
    """[B, T]: a learned target whose predecessor in its row is not learned, or belongs to another document."""
    learned = batch.targets >= 0
    before = np.zeros_like(learned)
    before[:, 1:] = learned[:, :-1]
    if batch.segment_ids is not None:
        before[:, 1:] &= batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    return learned & ~before


def batch_hidden(model: Decoder, batch: Batch, device: torch.device) -> Tensor:
    """Hidden states of a batch, [B, T, H]."""
    return model.hidden(**_arguments(model, batch, device))


def batch_entered(model: Decoder, batch: Batch, device: torch.device) -> tuple[Tensor, tuple[View, ...]]:
    """What enters the first layer, [B, T, H], and the view of each layer."""
    return model.entered(**_arguments(model, batch, device))


def _arguments(model: Decoder, batch: Batch, device: torch.device) -> dict[str, Any]:
    """The one place where a batch meets a model."""
    segments = None if batch.segment_ids is None else on_device(batch.segment_ids, device)
    wanted = batch.privileges if model.config.num_privileges else None
    said = None if wanted is None else on_device(wanted, device)
    return {"ids_BT": on_device(batch.inputs, device), "segment_ids_BT": segments, "privileges_BT": said}


def kept_places(batch: Batch) -> NDArray[np.int64]:
    """Which of a batch's B T places are no padding; of an unpacked row those up to its last learned token."""
    if batch.segment_ids is not None:
        return np.flatnonzero(batch.segment_ids.reshape(-1) >= 0)
    learned = batch.targets >= 0
    return np.flatnonzero(np.logical_or.accumulate(learned[:, ::-1], axis=1)[:, ::-1].reshape(-1))


def learned_hidden(model: Decoder, batch: Batch, device: torch.device) -> Tensor:
    """Hidden states where a target is learned, [N, H], row by row."""
    # Indices are found on the host: a mask on the device would make it wait for their number.
    index = on_device(np.flatnonzero(batch.targets.reshape(-1) >= 0), device)
    return batch_hidden(model, batch, device).flatten(0, 1)[index]


def on_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as a tensor on `device`; to an accelerator through pinned memory, without waiting."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@torch.no_grad()
def mean_loss(
    model: Decoder, batches: Iterable[Batch], device: torch.device, objective: Objective | None = None
) -> float:
    """Mean loss of held-out batches per counted thing; cross-entropy in nats a token unless told otherwise."""
    chosen = objective or CrossEntropy()
    total, count = 0.0, 0.0
    for batch in batches:
        found = chosen(model, batch, device)
        total, count = total + float(found.total), count + found.count
    return total / max(1.0, count)
