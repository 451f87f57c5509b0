"""Tiny runs shared by the tests, also as a process of their own: `python -m tests.train.runs FOLDER '{"steps": 3}'`.

Options: steps (all), stop_after, dtype, and fields of TrainConfig. Writes `weights.safetensors` when done, and in every
process the step and a hash of the batches it was given.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.loop import Run, Stage
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
        for i in range(4):
            rows = rng.integers(2, 90, size=(1 + i, 9 + 4 * i))
            targets = np.where(rng.random(rows.shape) < (0.2, 0.9, 0.5, 1.0)[i], rows, -100)
            targets[0, 0] = 5
            found.append(Batch(rows, targets))
        return found


def tiny_run(folder: Path, *, steps: int = 50, dtype: torch.dtype = torch.float32, **changes: Any) -> Run:
    """A run of two tiny layers on one thread of the CPU; `changes` replace what it is made of."""
    torch.set_num_threads(1)
    model = Decoder(tiny_config("gemma3_text", num_layers=2)).to(dtype)
    model.init_weights(0)
    stages = changes.pop("stages", [Stage(name="only", stream=Counting())])
    on_report = changes.pop("on_report", lambda report: None)
    fields: dict[str, Any] = {
        "schedule": ScheduleConfig(total_steps=steps, warmup_steps=5),
        "optimizer": OptimizerConfig(adam_lr=1e-2),
        "log_every": 1,
        "checkpoint_s": 1e9,
        "device": "cpu",
    }
    config = TrainConfig(**(fields | changes))
    return Run(model=model, stages=stages, config=config, folder=folder, on_report=on_report)


def main() -> None:
    from safetensors.torch import save_file

    from smelt.train.distributed import joined

    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    stop_after = options.pop("stop_after", None)
    dtype = getattr(torch, options.pop("dtype", "float32"))
    stream = {"counting": Counting, "uneven": Uneven}[options.pop("stream", "counting")]()
    with joined(torch.device("cpu")) as world:
        run = tiny_run(folder, dtype=dtype, stages=[Stage(name="only", stream=stream)], **options)
        run.train(stop_after)
        result = run.result()
        if world.writes:
            save_file(
                {name: p.detach().clone() for name, p in result.named_parameters()}, folder / "weights.safetensors"
            )


if __name__ == "__main__":
    main()
