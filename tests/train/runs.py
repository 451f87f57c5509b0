"""Tiny runs shared by the tests, in this process or in others that can be killed or brought together."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from smelt.core.errors import TrainingError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.distributed import joined
from smelt.train.loop import Run, Stage
from smelt.train.report import Report
from tests.tiny import tiny_config


@dataclass(frozen=True)
class Counting:
    """Rows that count up: token n is followed by n + 1."""

    seed: int = 0

    def chunk(self, number: int) -> list[Batch]:
        rng = np.random.default_rng((self.seed, number))
        starts = rng.integers(2, 60, size=(3, 4, 1))
        rows = starts + np.arange(17)
        return [Batch(rows[i, :, :-1], rows[i, :, 1:]) for i in range(3)]


@dataclass(frozen=True)
class Uneven(Counting):
    """Batches of very different size, with few and many learned tokens."""

    def chunk(self, number: int) -> list[Batch]:
        rng = np.random.default_rng((self.seed, number))
        found = []
        for i, learned in enumerate((0.2, 0.9, 0.5, 1.0)):
            rows = rng.integers(2, 90, size=(1 + i, 9 + 4 * i))
            targets = np.where(rng.random(rows.shape) < learned, rows, -100)
            targets[0, 0] = 5
            found.append(Batch(rows, targets))
        return found


def tiny_run(folder: Path, *, steps: int = 50, dtype: torch.dtype = torch.float32, **changes: Any) -> Run:
    """A run of two tiny layers on one thread of the CPU; `changes` replace what it is made of."""
    torch.set_num_threads(1)
    model = Decoder(tiny_config("gemma3_text", num_layers=2))
    model.init_weights(0)
    model.to(dtype)
    stages = changes.pop("stages", [Stage(name="only", stream=Counting())])
    hooks = {name: changes.pop(name) for name in ("on_report", "stopping") if name in changes}
    fields: dict[str, Any] = {
        "schedule": ScheduleConfig(total_steps=steps, warmup_steps=5),
        "optimizer": OptimizerConfig(adam_lr=1e-2),
        "log_every": 1,
        "checkpoint_s": 1e9,
        "device": "cpu",
    }
    config = TrainConfig(**(fields | changes))
    return Run(model=model, stages=stages, config=config, folder=folder, **({"on_report": _silent} | hooks))


def _silent(report: Report) -> None:
    pass


def uneven_run(folder: Path, **changes: Any) -> Run:
    """A tiny run over `Uneven`, four batches a step."""
    fields = {"accumulate": 4, "steps": 6, "stages": [Stage(name="only", stream=Uneven())]}
    return tiny_run(folder, **(fields | changes))


def first_gradients(run: Run) -> dict[str, torch.Tensor]:
    """The summed gradient of the first step, whole, before it is divided."""
    batches = run.stages[0].stream.chunk(0)[run.world.rank :: run.world.size]
    _, found = run.gradients(run.stages[0].objective, batches, map)
    named = zip(run.optimizer.weights, found, strict=True)
    return {name: run.layout.whole(name, part).clone() for name, part in named}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in run.result().named_parameters()}


def furthest(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """The largest difference anywhere."""
    assert set(a) == set(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


Job = tuple[str, dict[str, Any], int | None]
"""(folder, changes of `uneven_run`, stop_after)."""


def processes() -> ForkServerContext:
    """Real processes at the price of a fork: a server that has imported torch once makes them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.runs"])
    return context


def together(jobs: Sequence[Job], environment: Mapping[str, str]) -> None:
    """Body of one of several processes: all jobs in turn. Rank 0 writes the gradients and weights of each."""
    os.environ.update(environment)
    with joined(torch.device("cpu")) as world:
        for folder, changes, stop_after in jobs:
            run = uneven_run(Path(folder), **changes)
            gradients = first_gradients(run)
            run.train(stop_after)
            found = weights(run)
            if world.writes:
                save_file(gradients, Path(folder) / "gradients.safetensors")
                save_file(found, Path(folder) / "weights.safetensors")


@dataclass(frozen=True)
class Deserted(Uneven):
    """Data at which the second process dies."""

    def chunk(self, number: int) -> list[Batch]:
        if number == 3 and os.environ.get("RANK") == "1":
            os._exit(7)
        return super().chunk(number)


def deserted(folder: str, environment: Mapping[str, str]) -> None:
    """Body of one of two processes, of which the second dies in the fourth step; the first writes what it was told."""
    os.environ.update(environment)
    with joined(torch.device("cpu")):
        run = uneven_run(Path(folder), checkpoint_s=0.0, stages=[Stage(name="only", stream=Deserted())])
        try:
            run.train()
        except TrainingError as error:
            (Path(folder) / "told").write_text(str(error))


def endless(folder: str) -> None:
    """Body of a process to be killed: forty steps with a checkpoint after each."""
    tiny_run(Path(folder), steps=40, checkpoint_s=0.0, ema=0.9).train()


def started(target: Any, *arguments: Any) -> ForkServerProcess:
    process = processes().Process(target=target, args=arguments)
    process.start()
    return process
