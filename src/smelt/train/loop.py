"""The loop: batches in, weights out; stopped at any moment, it goes on from its last checkpoint when called again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smelt.core.errors import TrainingError, TrainingStoppedError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train import distributed, hardware, report, state
from smelt.train.average import Average
from smelt.train.config import TrainConfig
from smelt.train.curves import write_curves
from smelt.train.distributed import Layout, World
from smelt.train.gradients import Gradients, Map, ShardedModel, WholeModel
from smelt.train.objectives import CrossEntropy, LossSum, Objective
from smelt.train.optim import Optimizer
from smelt.train.report import Report, print_report
from smelt.train.schedule import Plan


class Stream(Protocol):
    """Batches by chunk number; the same number always gives the same batches."""

    def chunk(self, number: int) -> Sequence[Batch]:
        """Chunk `number` (0, 1, ...)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the curriculum: its stream, what it minimises, and the tokens after which the next stage begins.

    The last stage has no end of its own; `at_decay` starts a stage when the rate starts to fall, at the latest.
    """

    name: str
    stream: Stream
    objective: Objective = CrossEntropy()
    until_tokens: int | None = None
    at_decay: bool = False


@dataclass(frozen=True)
class Place:
    """Where a batch comes from."""

    stage: int
    chunk: int
    batch: int


@dataclass
class Window:
    """What has been summed since the last report."""

    loss: float = 0.0
    count: float = 0.0
    num_tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    logs: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, count: float, num_tokens: int, logs: Sequence[Mapping[str, float]]) -> None:
        """Take in a step. loss, count, num_tokens: of all processes; logs: of this one."""
        self.loss, self.count = self.loss + loss, self.count + count
        self.num_tokens += num_tokens
        self.logs = summed([self.logs, *logs])


def summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    return found


def shape_of(value: Any) -> Any:
    """A decoder's configuration as JSON values, without the fields that are as they are by default.

    So a variant that a later version adds makes no run begun before it another one.
    """
    if isinstance(value, tuple):
        return [shape_of(item) for item in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    found = {f.name: getattr(value, f.name) for f in fields(value)}
    return {f.name: shape_of(found[f.name]) for f in fields(value) if found[f.name] != f.default}


@dataclass(kw_only=True)
class Run:
    """A run in a folder: `state-*` checkpoints and `metrics.jsonl`.

    Only trainable parameters are trained; all are checkpointed. Setting `stopping` ends the run after the step under
    way, with a checkpoint. before_step: told how many steps lie behind, on every process, before what comes next (a
    step, a checkpoint, the end): what a model does otherwise from some step on (fake quantization) then resumes with
    the run. It may put whole weights right in place (zero where a mask is); done twice that must change nothing.
    """

    model: Decoder
    stages: Sequence[Stage]
    config: TrainConfig
    folder: Path
    on_report: Callable[[Report], None] = print_report
    stopping: threading.Event = field(default_factory=threading.Event)
    before_step: Callable[[int], None] = lambda _: None

    def __post_init__(self) -> None:
        self.device = hardware.pick_device(self.config.device)
        self.world = World.current(self.device)
        parameters = self._prepare()
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.layout = Layout(parameters)
        self.optimizer = Optimizer(trained.items(), self.config.optimizer, layout=self.layout, world=self.world)
        self.average = Average(self.optimizer.weights, self.config.ema)
        self.gradients = self._gradients(list(trained.values()))
        self.position = state.Position()
        self.plan = Plan.of(self.config.schedule)
        shape = {
            "model": shape_of(self.model.config),
            "train": self.config.decisive(),
            "stages": [(s.name, s.objective.name) for s in self.stages],
        }
        self.identity = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()

    def train(self, stop_after: int | None = None) -> state.Position:
        """Train to the end of the schedule, or for `stop_after` more steps; returns where the run stands.

        Raises TrainingError where a loss or gradient is no number, TrainingStoppedError after `stopping` was set, and
        CheckpointError where the folder cannot be used.
        """
        with state.locked(self.folder) if self.world.writes else contextlib.nullcontext():
            self.world.wait()
            self.resume()
            if self.world.writes:
                report.cut_after(self.folder, self.position.step)
            with ThreadPoolExecutor(self.config.workers) as pool:
                spread = pool.map if self.config.workers > 1 else map
                self.optimizer.spread = spread
                self._train(spread, stop_after)
            self.save()
            if self.world.writes:
                write_curves(self.folder)
        if self.stopping.is_set() and self.position.step < self.plan.total_steps:
            raise TrainingStoppedError(
                f"stopped after step {self.position.step} with a checkpoint; call again to go on"
            )
        return self.position

    def save(self) -> None:
        """Write a checkpoint now; all processes must."""
        self.position.plan = asdict(self.plan)
        tensors = {}
        for name, (parameter, part) in self._tensors().items():
            whole = self.layout.whole(parameter, part)
            if self.world.writes:
                tensors[name] = whole.to("cpu", torch.float32).contiguous()
        if self.world.writes:
            state.save(self.folder, tensors, self.position, self.identity)
        self.world.wait()

    @torch.no_grad()
    def resume(self) -> None:
        """Take weights, optimizer and position from the last checkpoint, where there is one."""
        found = state.load(self.folder, self.identity)
        if found is None:
            self.world.first_says_(list(self.layout.local.values()) if not self.layout.sharded else [])
            self.before_step(0)
            return
        tensors, self.position = found
        self.plan = Plan(**self.position.plan).resumed(self.config.schedule, self.position.step)
        for name, (parameter, part) in self._tensors().items():
            part.copy_(self.layout.part(parameter, tensors[name]))
        self.before_step(self.position.step)

    @torch.no_grad()
    def result(self, *, averaged: bool = False) -> Decoder:
        """A whole copy of the model on the CPU, for export; of the weights' average if asked. All processes must.

        Raises TrainingError where an average is asked for and the run keeps none.
        """
        if averaged and not self.average.state:
            raise TrainingError("no average of the weights was kept; sought a run with `ema` above 0")
        chosen = Decoder(self.model.config)
        for name, parameter in chosen.named_parameters():
            part = self.average.state.get(name) if averaged else None
            parameter.copy_(self.layout.whole(name, self.layout.local[name] if part is None else part))
        return chosen

    def _prepare(self) -> dict[str, nn.Parameter]:
        """Everything on the device and in the form it computes in; the parameters by name, objectives' own behind."""
        distributed.check_batches(self.config.accumulate, self.world, self.config.parallel)
        self.model.to(self.device)
        self.model.checkpoint_layers = self.config.checkpoint_layers
        if self.config.compile:
            hardware.compile_layers(self.model)
        if self.config.parallel == "shard":
            distributed.shard(self.model, self.world)
        parameters = dict(self.model.named_parameters())
        for i, stage in enumerate(self.stages):
            if isinstance(stage.objective, nn.Module):
                own = stage.objective.to(self.device).named_parameters()
                known = {id(parameter) for parameter in parameters.values()}
                parameters |= {f"objective.{i}.{name}": p for name, p in own if id(p) not in known}
        return parameters

    def _gradients(self, trained: list[nn.Parameter]) -> Gradients:
        dtype = hardware.autocast_dtype(self.config.precision, self.device)
        if self.config.parallel == "shard":
            return ShardedModel(model=self.model, parameters=trained, world=self.world, dtype=dtype)
        single = self.config.workers > 1
        return WholeModel(model=self.model, parameters=trained, world=self.world, dtype=dtype, single_threaded=single)

    def _tensors(self) -> dict[str, tuple[str, Tensor]]:
        """What a checkpoint holds: by its name there the parameter it belongs to, and this process's part of it."""
        found = {f"model.{name}": (name, part) for name, part in self.layout.local.items()}
        found |= {f"optimizer.{n}": (n.partition(".")[2], part) for n, part in self.optimizer.state.items()}
        return found | {f"ema.{name}": (name, part) for name, part in self.average.state.items()}

    def _train(self, spread: Map, stop_after: int | None) -> None:
        began, before = time.monotonic(), self.position.elapsed_s
        saved, window, done, stopping = began, Window(), 0, False
        batches = self._batches()
        while self.position.step < self.plan.total_steps and done != stop_after and not stopping:
            self.plan.settle(self.config.schedule, self.position.step, self.position.elapsed_s)
            norm, scale = self._step(spread, batches, window)
            done, now = done + 1, time.monotonic()
            # One clock for all: what rank 0 says decides when the schedule decays and when all save.
            first = self.world.writes
            elapsed, due, stops = self.world.numbers(
                [
                    before + now - began if first else 0.0,
                    float(first and now - saved >= self.config.checkpoint_s),
                    float(self.stopping.is_set()),
                ]
            )
            self.position.elapsed_s, stopping = elapsed, stops > 0
            if self.position.step % self.config.log_every == 0 or self.position.step == self.plan.total_steps:
                self._report(window, norm, scale)
                window = Window()
            if due:
                self.save()
                saved = time.monotonic()

    def _step(self, spread: Map, batches: Iterator[tuple[Place, Batch]], window: Window) -> tuple[float, float]:
        """One update; adds to the window what it summed. Returns the gradient's norm and the rate's factor."""
        parts = [next(batches) for _ in range(self.config.accumulate)]
        objective = self.stages[self.position.stage].objective
        mine = range(self.world.rank, len(parts), self.world.size)
        losses, summed = self.gradients(objective, [parts[i][1] for i in mine], spread)
        totals, counts = self._shared(len(parts), dict(zip(mine, losses, strict=True)))
        self._check_losses(totals, [place for place, _ in parts])
        torch._foreach_div_(summed, max(1.0, sum(counts)))
        gradients = dict(zip(self.optimizer.weights, summed, strict=True))
        if not math.isfinite(norm := self.optimizer.norm(gradients)):
            raise TrainingError(self._broken(f"a gradient of norm {norm}", [place for place, _ in parts]))
        scale = self.plan.scale(self.config.schedule, self.position.step)
        self.position.step += 1
        self.optimizer.step(gradients, scale, self.position.step, norm)
        self.before_step(self.position.step)
        self.average.update(self.position.step)
        num_tokens = sum(part.inputs.size for _, part in parts)
        self.position.num_tokens += num_tokens
        window.add(sum(totals), sum(counts), num_tokens, [loss.logs for loss in losses])
        return norm, scale

    def _shared(self, num_parts: int, losses: Mapping[int, LossSum]) -> tuple[list[float], list[float]]:
        """Losses and counts of all batches of a step, on every process."""
        totals, counts = [0.0] * num_parts, [0.0] * num_parts
        for i, loss in losses.items():
            totals[i], counts[i] = float(loss.total), loss.count
        found = self.world.numbers([*totals, *counts])
        return found[:num_parts], found[num_parts:]

    def _check_losses(self, totals: Sequence[float], places: Sequence[Place]) -> None:
        broken = [(total, place) for total, place in zip(totals, places, strict=True) if not math.isfinite(total)]
        if broken:
            raise TrainingError(self._broken(f"a loss of {broken[0][0]}", [place for _, place in broken]))

    def _broken(self, what: str, places: Sequence[Place]) -> str:
        where = ", ".join(f"batch {p.batch} of chunk {p.chunk}" for p in places)
        kept = max((path.name for path in self.folder.glob("state-*")), default="none yet")
        return (
            f"step {self.position.step + 1} stopped: {what} on {where} of stage "
            f"{self.stages[places[0].stage].name!r}; sought a finite number. The last checkpoint ({kept}) is kept; "
            "a lower rate, or a look at that batch, comes before calling again"
        )

    def _batches(self) -> Iterator[tuple[Place, Batch]]:
        where = self.position
        current: tuple[int, int] | None = None
        chunk: Sequence[Batch] = []
        while True:
            if (stage := self._stage()) != where.stage:
                where.stage, where.chunk, where.batch = stage, 0, 0
            if current != (where.stage, where.chunk):
                chunk = self.stages[where.stage].stream.chunk(where.chunk)
                current = (where.stage, where.chunk)
            if where.batch >= len(chunk):
                where.chunk, where.batch = where.chunk + 1, 0
                continue
            where.batch += 1
            yield Place(where.stage, where.chunk, where.batch - 1), chunk[where.batch - 1]

    def _stage(self) -> int:
        """The stage the next batch comes from: never an earlier one than now. It changes between steps only."""
        stage = self.position.stage
        while stage + 1 < len(self.stages):
            end = self.stages[stage].until_tokens
            decays = self.stages[stage + 1].at_decay and self.position.step >= self.plan.decay_start
            if not decays and (end is None or self.position.num_tokens < end):
                break
            stage += 1
        return stage

    def _report(self, window: Window, norm: float, scale: float) -> None:
        position, settled = self.position, self.plan.settled
        left = (self.plan.total_steps - position.step) * position.elapsed_s / position.step if settled else -1.0
        logs = summed(self.world.gathered(window.logs))
        made = Report(
            step=position.step,
            total_steps=self.plan.total_steps,
            stage=self.stages[position.stage].name,
            loss=window.loss / max(1.0, window.count),
            gradient_norm=norm,
            scale=scale,
            num_tokens=position.num_tokens,
            tokens_per_s=window.num_tokens / max(1e-9, time.monotonic() - window.began),
            elapsed_s=position.elapsed_s,
            left_s=left,
            logs={name: value / max(1.0, window.count) for name, value in logs.items()},
        )
        if self.world.writes:
            report.append(self.folder, made)
            self.on_report(made)
