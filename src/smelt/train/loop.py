"""The loop: batches in, weights out; stopped at any moment, it goes on from its last checkpoint when called again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch

from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train import state
from smelt.train.config import TrainConfig
from smelt.train.objectives import CrossEntropy, LossSum, Objective
from smelt.train.optim import Optimizer
from smelt.train.schedule import Plan


class Stream(Protocol):
    """Batches by chunk number; the same number always gives the same batches."""

    def chunk(self, number: int) -> list[Batch]:
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """One line of progress. loss: nats per learned token since the last line; rate: tokens a second."""

    step: int
    total_steps: int
    stage: str
    loss: float
    gradient_norm: float
    scale: float
    num_tokens: int
    tokens_per_s: float
    elapsed_s: float
    left_s: float


def print_report(report: Report) -> None:
    """A plain line on the terminal."""
    left = f"{report.left_s / 60:.1f} min left" if report.left_s >= 0 else "until the deadline"
    print(  # noqa: T201
        f"step {report.step:5d} {report.stage:<9} loss {report.loss:.4f}  rate x{report.scale:.2f}  "
        f"{report.num_tokens / 1e6:.2f}M tokens  {report.tokens_per_s:,.0f}/s  {left}",
        flush=True,
    )


@dataclass(kw_only=True)
class Run:
    """A run in a folder: `state-*` checkpoints and `metrics.jsonl`."""

    model: Decoder
    stages: Sequence[Stage]
    config: TrainConfig
    folder: Path
    on_report: Callable[[Report], None] = print_report

    def __post_init__(self) -> None:
        self.model.to(self.config.device)
        self.optimizer = Optimizer(self.model.named_parameters(), self.config.optimizer)
        self.position = state.Position()
        self.plan = Plan.of(self.config.schedule)
        shape = {
            "model": asdict(self.model.config),
            "train": asdict(self.config),
            "stages": [(s.name, s.objective.name) for s in self.stages],
        }
        self.identity = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()

    def train(self, stop_after: int | None = None) -> state.Position:
        """Train to the end of the schedule, or for `stop_after` more steps; returns where the run stands."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        with ThreadPoolExecutor(self.config.workers) as pool:
            self.optimizer.spread = pool.map
            self._train(pool, stop_after)
        self.save()
        return self.position

    def _train(self, pool: ThreadPoolExecutor, stop_after: int | None) -> None:
        began, before = time.monotonic(), self.position.elapsed_s
        saved = began
        losses, counts, window = 0.0, 0.0, (began, self.position.num_tokens)
        batches, done = self._batches(), 0
        while self.position.step < self.plan.total_steps and done != stop_after:
            self.plan.settle(self.config.schedule, self.position.step, self.position.elapsed_s)
            loss, count, norm, scale = self._step(pool, batches)
            losses, counts, done = losses + loss, counts + count, done + 1
            now = time.monotonic()
            self.position.elapsed_s = before + now - began
            if self.position.step % self.config.log_every == 0 or self.position.step == self.plan.total_steps:
                rate = (self.position.num_tokens - window[1]) / max(1e-9, now - window[0])
                self._report(losses / max(1.0, counts), norm, scale, rate)
                losses, counts, window = 0.0, 0.0, (now, self.position.num_tokens)
            if now - saved >= self.config.checkpoint_s:
                self.save()
                saved = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint now."""
        self.position.plan = asdict(self.plan)
        tensors = {f"model.{n}": p.data for n, p in self.model.named_parameters()}
        tensors |= {f"optimizer.{n}": t for n, t in self.optimizer.state.items()}
        state.save(self.folder, tensors, self.position, self.identity)

    def resume(self) -> None:
        """Take weights, optimizer and position from the last checkpoint, where there is one."""
        found = state.load(self.folder, self.identity)
        if found is None:
            return
        tensors, self.position = found
        self.plan = Plan(**self.position.plan)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
            for name, value in self.optimizer.state.items():
                value.copy_(tensors[f"optimizer.{name}"])

    def _step(self, pool: ThreadPoolExecutor, batches: Iterator[Batch]) -> tuple[float, float, float, float]:
        parts, objective = [], self.stages[0].objective
        for _ in range(self.config.accumulate):
            parts.append(next(batches))
            objective = self.stages[self.position.stage].objective
        total, count = 0.0, 0.0
        summed: list[torch.Tensor] = []
        for loss, gradients in pool.map(lambda part: self._gradients(objective, part), parts):
            total, count = total + float(loss.total), count + loss.count
            if summed:
                torch._foreach_add_(summed, list(gradients))
            else:
                summed = list(gradients)
        torch._foreach_div_(summed, max(1.0, count))
        self.position.num_tokens += sum(part.inputs.size for part in parts)
        scale = self.plan.scale(self.config.schedule, self.position.step)
        self.position.step += 1
        norm = self.optimizer.step(dict(zip(self.optimizer.named, summed, strict=True)), scale, self.position.step)
        return total, count, norm, scale

    def _gradients(self, objective: Objective, part: Batch) -> tuple[LossSum, tuple[torch.Tensor, ...]]:
        """Summed loss of one batch and its gradients, on one core."""
        if self.config.workers > 1:
            torch.set_num_threads(1)  # holds for the calling thread
        loss = objective(self.model, part, torch.device(self.config.device))
        gradients = torch.autograd.grad(loss.total, list(self.optimizer.named.values()))
        return dataclasses.replace(loss, total=loss.total.detach()), gradients

    def _batches(self) -> Iterator[Batch]:
        where = self.position
        current: tuple[int, int] | None = None
        chunk: list[Batch] = []
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
            yield chunk[where.batch - 1]

    def _stage(self) -> int:
        """The stage the next batch comes from: never an earlier one than now."""
        stage = self.position.stage
        while stage + 1 < len(self.stages):
            end = self.stages[stage].until_tokens
            decays = self.stages[stage + 1].at_decay and self.position.step >= self.plan.decay_start
            if not decays and (end is None or self.position.num_tokens < end):
                break
            stage += 1
        return stage

    def _report(self, loss: float, norm: float, scale: float, rate: float) -> None:
        position, settled = self.position, self.plan.settled
        left = (self.plan.total_steps - position.step) * position.elapsed_s / position.step if settled else -1.0
        report = Report(
            step=position.step,
            total_steps=self.plan.total_steps,
            stage=self.stages[position.stage].name,
            loss=loss,
            gradient_norm=norm,
            scale=scale,
            num_tokens=position.num_tokens,
            tokens_per_s=rate,
            elapsed_s=position.elapsed_s,
            left_s=left,
        )
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(asdict(report)) + "\n")
        self.on_report(report)
