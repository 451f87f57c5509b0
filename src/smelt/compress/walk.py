"""A model taken layer by layer over a calibration set, one layer's statistics in memory at a time.

A layer's matrices are treated in four groups, in the order in which their inputs depend on each other (q, k and v; o;
gate and up; down), and each group's inputs are collected through all that was treated before: what comes later learns
to live with the errors of what came first (true-sequential, Frantar et al. 2022, arXiv:2210.17323).

A finished layer is a file in the scratch folder. After a kill the walk takes finished layers from there, runs them once
to have what enters the next one, and ends with the same bits. Shapes: B rows, T tokens, H hidden width, N tokens of a
batch without padding, I inputs of a matrix.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smelt.compress.calibration import Calibration
from smelt.compress.stage import Progress
from smelt.compress.walk_state import Finished, HiddenStates, identity_of
from smelt.core.errors import TrainingStoppedError
from smelt.model.decoder import Decoder, Layer, Norm, View
from smelt.train.objectives import batch_entered, kept_places, on_device

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT = ("self_attn.o_proj",)
GATE = ("mlp.gate_proj", "mlp.up_proj")
DOWN = ("mlp.down_proj",)
GROUPS = (ATTENTION, OUTPUT, GATE, DOWN)
MEMORY_BYTES = 2 << 30
"""Hidden states above this lie in a file, unless a walk is told otherwise."""


class Treatment(Protocol):
    """What is done to each group of matrices."""

    @property
    def name(self) -> str:
        """Its kind and settings: another name is another walk."""
        ...

    def treat(self, group: Group) -> Mapping[str, NDArray[Any]]:
        """Change the group's layer in place (weights, biases, the norm in front).

        Returns arrays to keep beside the weights (codes, scales, masks), under names that no other group has.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Group:
    """Matrices that share their inputs.

    linears: by their name in a folder, without `.weight`. block: the attention or the MLP they are part of.
    norm: the one whose output they read, None for o and down (before which v and up stand).
    """

    layer_index: int
    linears: dict[str, nn.Linear]
    layer: Layer
    block: nn.Module
    norm: Norm | None
    _run: _LayerRun

    @property
    def num_tokens(self) -> int:
        """Rows that `inputs` gives in all."""
        return self._run.num_tokens

    def inputs(self) -> Iterator[Tensor]:
        """What the matrices read, [N, I] a batch, through the layer as it is now; computed anew by every call."""
        return self._run.seen(next(iter(self.linears.values())), output=False)

    def outputs(self) -> Iterator[Tensor]:
        """What the block makes of it, [N, H] a batch, with the layer as it is now; computed anew by every call."""
        return self._run.seen(self.block, output=True)


@torch.no_grad()
def walk(
    model: Decoder,
    calibration: Calibration,
    treatment: Treatment,
    scratch: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stopping: threading.Event | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, NDArray[Any]]:
    """Treat every matrix inside the layers of `model`, in place; returns what the treatment kept, mapped from files.

    memory_bytes: hidden states above this lie in a file of `scratch` instead of memory. Matrices that several layers
    share are treated where they come first. Raises TrainingStoppedError soon after `stopping` was set and
    CheckpointError where `scratch` belongs to another walk or has no room; both leave it in order, to go on from.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    finished = Finished(scratch, identity_of(model, calibration.digest, treatment.name))
    stop = stopping or threading.Event()
    layers: list[Layer] = list(model.model.layers)  # type: ignore[arg-type]
    clock = _Clock(total=len(layers) * len(GROUPS), on_progress=on_progress)
    treated: set[int] = set()
    kept: dict[str, NDArray[Any]] = {}
    with HiddenStates.of(model, calibration.batches, scratch, memory_bytes) as hidden:
        for index, layer in enumerate(layers):
            run = _LayerRun(model=model, calibration=calibration, hidden=hidden, index=index, stopping=stop)
            if not finished.restore(index, layer):
                arrays: dict[str, NDArray[Any]] = {}
                for number, group in enumerate(_groups(run, layer, treated)):
                    if group is not None:
                        arrays |= treatment.treat(group)
                    clock.tick(index * len(GROUPS) + number + 1)
                finished.store(index, layer, arrays)
            treated |= {id(parameter) for parameter in layer.parameters()}
            kept |= finished.kept(index)
            if index + 1 < len(layers):
                run.forward()
    return kept


def _groups(run: _LayerRun, layer: Layer, treated: set[int]) -> Iterator[Group | None]:
    """The layer's groups in order, None for one of which nothing is left to treat."""
    attention, mlp = layer.self_attn, layer.mlp
    before_mlp = layer.pre_feedforward_layernorm or layer.post_attention_layernorm
    norms = {ATTENTION: layer.input_layernorm, GATE: before_mlp}
    for names in GROUPS:
        found = {name: layer.get_submodule(name) for name in names}
        linears = {
            f"model.layers.{run.index}.{name}": module
            for name, module in found.items()
            if isinstance(module, nn.Linear) and id(module.weight) not in treated
        }
        block = attention if names in (ATTENTION, OUTPUT) else mlp
        yield (
            Group(layer_index=run.index, linears=linears, layer=layer, block=block, norm=norms.get(names), _run=run)
            if linears
            else None
        )


class _ReachedError(Exception):
    """Ends a layer's forward pass where what was wanted is known."""


@dataclass(frozen=True, kw_only=True)
class _LayerRun:
    """A layer and all that enters it."""

    model: Decoder
    calibration: Calibration
    hidden: HiddenStates
    index: int
    stopping: threading.Event

    @property
    def num_tokens(self) -> int:
        return sum(len(kept_places(batch)) for batch in self.calibration.batches)

    def seen(self, module: nn.Module, *, output: bool) -> Iterator[Tensor]:
        """What enters or leaves `module`, a part of the layer; [N, width] a batch, without padding."""
        caught: list[Tensor] = []

        def before(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            caught.append(given[0])
            raise _ReachedError

        def behind(_: nn.Module, _given: Any, made: Tensor) -> None:
            caught.append(made)
            raise _ReachedError

        for number, batch in enumerate(self.calibration.batches):
            # The hook stands for one batch only: the caller may drop this iterator half way.
            hook = module.register_forward_hook(behind) if output else module.register_forward_pre_hook(before)
            try:
                with suppress(_ReachedError):
                    self._layer(number)
            finally:
                hook.remove()
            places = on_device(kept_places(batch), caught[0].device)
            yield caught.pop().flatten(0, 1)[places]

    def forward(self) -> None:
        """Run the layer over everything: what left it becomes what enters the next."""
        for number in range(len(self.calibration.batches)):
            self.hidden.put(number, self._layer(number))

    @torch.no_grad()  # here as well: a generator runs in its caller's mode
    def _layer(self, number: int) -> Tensor:
        if self.stopping.is_set():
            raise TrainingStoppedError(f"stopped in layer {self.index}, the layers before it kept; call again to go on")
        layer: nn.Module = self.model.model.layers[self.index]
        out: Tensor = layer(self.hidden.get(number), self._view(number))
        return out

    def _view(self, number: int) -> View:
        _, views = batch_entered(self.model, self.calibration.batches[number], self.hidden.device)
        return views[self.index]


class _Clock:
    """Progress with the time left, by the rate of this process."""

    def __init__(self, *, total: int, on_progress: Callable[[Progress], None]) -> None:
        self.total, self.on_progress = total, on_progress
        self.began, self.here = time.monotonic(), 0

    def tick(self, done: int) -> None:
        self.here += 1
        left_s = (time.monotonic() - self.began) / self.here * (self.total - done)
        self.on_progress(Progress(unit="groups of matrices", done=done, total=self.total, left_s=left_s))
