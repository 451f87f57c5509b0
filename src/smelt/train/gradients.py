"""The gradient of one step: this process's share of its batches, summed over them and over all processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.distributed import World, local, set_gradient_sync
from smelt.train.objectives import LossSum, Objective

Map = Callable[..., Iterable[Any]]


class Gradients(Protocol):
    """Computes a step. `losses` are detached, one a batch of this process; gradients in the parameters' order."""

    def __call__(
        self, objective: Objective, batches: Sequence[Batch], spread: Map
    ) -> tuple[list[LossSum], list[Tensor]]:
        """spread: `map`, or a pool's."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeModel:
    """Every batch on its own, by `spread` on a thread each; the sum is taken in the batches' order.

    single_threaded: each of the pool's threads keeps to one core.
    """

    model: Decoder
    parameters: Sequence[nn.Parameter]
    world: World
    dtype: torch.dtype | None
    single_threaded: bool

    def __call__(
        self, objective: Objective, batches: Sequence[Batch], spread: Map
    ) -> tuple[list[LossSum], list[Tensor]]:
        """Summed over the batches, then over the ranks."""
        losses: list[LossSum] = []
        summed: list[Tensor] = []
        for loss, gradients in spread(lambda batch: self._one(objective, batch), batches):
            losses.append(loss)
            if summed:
                torch._foreach_add_(summed, list(gradients))
            else:
                summed = list(gradients)
        summed = summed or [torch.zeros_like(parameter) for parameter in self.parameters]
        self.world.sum_(summed)
        return losses, summed

    def _one(self, objective: Objective, batch: Batch) -> tuple[LossSum, tuple[Tensor, ...]]:
        if self.single_threaded:
            torch.set_num_threads(1)  # holds for the calling thread
        with autocast(self.world.device, self.dtype):
            loss = objective(self.model, batch, self.world.device)
        gradients = torch.autograd.grad(loss.total, list(self.parameters), allow_unused=True, materialize_grads=True)
        return dataclasses.replace(loss, total=loss.total.detach()), gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardedModel:
    """A sharded model's batches one after the other; ranks sum their parts within the last backward pass."""

    model: Decoder
    parameters: Sequence[nn.Parameter]
    world: World
    dtype: torch.dtype | None

    def __call__(
        self, objective: Objective, batches: Sequence[Batch], spread: Map
    ) -> tuple[list[LossSum], list[Tensor]]:
        """This rank's parts of the gradients summed over everything. `spread` is not used: ranks move together."""
        losses = []
        for i, batch in enumerate(batches):
            set_gradient_sync(self.model, i == len(batches) - 1)
            with autocast(self.world.device, self.dtype):
                loss = objective(self.model, batch, self.world.device)
            loss.total.backward()  # type: ignore[no-untyped-call]
            losses.append(dataclasses.replace(loss, total=loss.total.detach()))
        found = [torch.zeros_like(local(p)) if p.grad is None else local(p.grad) for p in self.parameters]
        whole = [grad for p, grad in zip(self.parameters, found, strict=True) if local(p) is p]
        self.world.sum_(whole)  # an objective's own parameters, which are not sharded
        for parameter in self.parameters:
            parameter.grad = None
        return losses, found


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Matrix products in `dtype`; None leaves everything as it is."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
