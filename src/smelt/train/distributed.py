"""Several processes as one run: who computes which batch, what is summed, who writes.

Started by torchrun, over gloo on CPUs and NCCL on GPUs. A step is `accumulate` batches whatever the number of
processes W; rank r computes batches r, r + W, ... of it, so another W goes on with the same data in the same order.
Sums (gradients, losses, counts) are over all ranks, and only then divided by the global count.

Two ways to hold a model, by configuration:
- `replicate` (data parallel): every rank has it whole. Gradients are summed once a step, after the last batch, as one
  flat buffer: with the sizes smelt trains there is little to overlap, and a rank may have more batches than another.
- `shard` (FSDP2, `fully_shard`): every rank has a part of each parameter, of its gradient, momenta and average; layers
  are gathered when they compute. Muon needs whole matrices: each is gathered from its parts for the orthogonalisation,
  on every rank, and only the rank's part of the result is kept. That costs what one more forward pass gathers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smelt.core.errors import InvalidRequestError, TrainingError
from smelt.model.decoder import Decoder

Parallel = Literal["replicate", "shard"]
TIMEOUT = timedelta(minutes=10)  # a rank that died shows as an error in the others after this at the latest


@dataclass(frozen=True)
class World:
    """The processes of a run; a single one has no process group and nothing to wait for."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls, device: torch.device) -> World:
        """The processes `joined` has brought together, or this one alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(device, dist.get_rank(), dist.get_world_size())
        return cls(device)

    @property
    def writes(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _told():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def numbers(self, values: Sequence[float]) -> list[float]:
        """Sums of plain numbers over the ranks, in float64."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _told():
            dist.all_reduce(tensor)
        return cast(list[float], tensor.tolist())

    def gathered(self, value: dict[str, float]) -> list[dict[str, float]]:
        """The dictionaries of all ranks, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _told():
            dist.all_gather_object(found, value)
        return found

    def first_says_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors with rank 0's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            self.numbers([0.0])


@contextmanager
def _told() -> Iterator[None]:
    """A failed collective as an error with a shape: nearly always another process has died."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"the processes of this run lost each other ({str(error).splitlines()[0][:200]}); the last checkpoint is "
            "kept: start them again to go on"
        ) from error


def num_processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes torchrun started, brought together while the context lasts; without torchrun just this one."""
    if num_processes() == 1 or dist.is_initialized():
        yield World.current(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World.current(device)
    finally:
        dist.destroy_process_group()


def shard(model: Decoder, world: World) -> None:
    """FSDP2 over the layers and the rest, in place; gradients are summed, not averaged, over ranks.

    Raises InvalidRequestError without torchrun.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if not dist.is_initialized():
        raise InvalidRequestError("parallel: shard needs processes to share a model; start them with torchrun")
    mesh = init_device_mesh(world.device.type, (world.size,))
    # A matrix that several layers use must lie in one group with all of them: the root's.
    if all(layer.weights is None for layer in model.config.layers):
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
    # The head is used after `hidden`, outside any forward: what the root holds stays whole until the backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sums


def set_gradient_sync(model: Decoder, on: bool) -> None:
    """Whether the next backward pass of a sharded model sums over the ranks: once a step, at its last batch."""
    cast(Any, model).set_requires_gradient_sync(on)


class Layout:
    """How named tensors lie on this process: whole, or (where the parameter is a DTensor) the rank's rows of it."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.sharded = {n: p for n, p in parameters.items() if local(p) is not p}
        self.local = {n: local(p.detach()) for n, p in parameters.items()}

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The full tensor, from the parts of all ranks, which must all ask for it."""
        from torch.distributed.tensor import DTensor

        like = cast(Any, self.sharded.get(name))
        if like is None:
            return part
        found = DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return found.full_tensor()

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's rows of a full tensor: as `fully_shard` cuts, into ceil(rows / W) rows a rank."""
        like = cast(Any, self.sharded.get(name))
        if like is None:
            return whole
        mesh = like.device_mesh
        pieces = whole.chunk(mesh.size(), dim=0)
        rank = mesh.get_local_rank()
        return pieces[rank] if rank < len(pieces) else whole[:0]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this process, without a copy."""
    found: Tensor = getattr(tensor, "_local_tensor", tensor)  # a DTensor's; importing its class takes a second
    return found


def check_batches(accumulate: int, world: World, parallel: Parallel) -> None:
    """Sharded ranks gather layers together, so all must have equally many batches. Raises InvalidRequestError."""
    if parallel == "shard" and accumulate % world.size:
        raise InvalidRequestError(
            f"accumulate: {accumulate} batches a step do not divide among {world.size} sharded processes; "
            f"sought a multiple of {world.size}"
        )
