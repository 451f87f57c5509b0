"""Stages of milliseconds and material of a few rows, in this process or in children that can be killed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any, ClassVar

import numpy as np
import torch

from smelt.checkpoint import Checkpoint, save_checkpoint
from smelt.compress.calibration import Calibration
from smelt.compress.chain.measure import MeasureSettings
from smelt.compress.chain.run import Chain, Outcome, Watch, run_chain
from smelt.compress.chain.speed import SpeedSettings
from smelt.compress.distil import Distil
from smelt.compress.prune.shapes import Share
from smelt.compress.prune.stage import Prune
from smelt.compress.quantize.ptq_stage import Quantize
from smelt.compress.stage import Material, Progress, Work, how
from smelt.core.errors import TrainingStoppedError
from smelt.core.quantization import Scheme, WeightFormat
from smelt.data.batches import Batch
from smelt.train.finetune.folder import kept_files
from tests.tiny import make_tiny_folder

UNMEASURED = MeasureSettings(speed=SpeedSettings(rounds=0))


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Every matrix times `factor`, tensor by tensor through the scratch folder. `pause_s`: time to be killed in."""

    factor: float = 0.5
    pause_s: float = how(0.0)
    name: ClassVar[str] = "scaled"

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        made = {}
        for i, (name, tensor) in enumerate(source.tensors.items()):
            if work.stopping.is_set():
                raise TrainingStoppedError("scaled: stopped")
            path = work.scratch / f"{i}.npy"
            if not path.is_file():
                with (work.scratch / "part").open("wb") as file:
                    np.save(file, tensor * np.float32(self.factor if tensor.ndim == 2 else 1.0))
                sleep(self.pause_s)
                (work.scratch / "part").rename(path)
                with (work.scratch.parent / "computed").open("a") as log:
                    log.write(f"{i}\n")
            made[name] = np.load(path)
            work.on_progress(Progress(unit="tensors", done=i + 1, total=len(source.tensors)))
        save_checkpoint(work.out, source.config, made, files=kept_files(source.folder))
        return {"factor": self.factor}


@dataclass(frozen=True)
class Fixed:
    """A stream of random rows."""

    seed: int
    vocab_size: int

    def chunk(self, number: int) -> list[Batch]:
        return rows(self.seed + 1, number, self.vocab_size, count=4)


def rows(seed: int, number: int, vocab_size: int, *, count: int) -> list[Batch]:
    rng = np.random.default_rng((seed, number))
    ids = rng.integers(0, vocab_size, size=(count, 2, 17))
    return [Batch(each[:, :-1], each[:, 1:]) for each in ids]


def material(vocab_size: int, digest: str = "material") -> Material:
    held_out = rows(99, 0, vocab_size, count=3)
    calibration = Calibration(source="random rows", digest="c" * 8, batches=tuple(rows(98, 0, vocab_size, count=3)))
    return Material(
        calibration=calibration,
        held_out=held_out,
        held_out_bytes=4 * sum(batch.num_learned for batch in held_out),
        stream=lambda seed: Fixed(seed, vocab_size),
        digest=digest,
    )


def chain(source: Path, *stages: Any, **changes: Any) -> Chain:
    from smelt.checkpoint import open_checkpoint

    made = material(open_checkpoint(source).config.vocab_size)
    return Chain(stages=stages, **({"material": made, "measuring": UNMEASURED} | changes))


def quiet(**changes: Any) -> Watch:
    return Watch(**({"say": lambda _: None} | changes))


def run(source: Path, folder: Path, *stages: Any, **changes: Any) -> Outcome:
    return run_chain(chain(source, *stages, **changes), source, folder, quiet())


def killable(source: str, folder: str, pause_s: float) -> None:
    """Body of a process to be killed: a slow stage, a pruning, a repair with a checkpoint a step, GPTQ."""
    torch.set_num_threads(1)
    stages = [
        Scaled(factor=0.5, pause_s=pause_s),
        Prune(target=Share(of_parameters=0.8), candidates=2),
        Distil(steps=8, checkpoint_s=0.0),
        Quantize(scheme=Scheme(weights=WeightFormat(bits=4)), method="gptq"),
    ]
    outcome = run(Path(source), Path(folder), *stages)
    (Path(folder) / "final").write_text(outcome.result.hash)


def small_source(path: Path, **changes: Any) -> Path:
    small: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "intermediate_size": 32}
    return make_tiny_folder(path, family="llama", **(small | changes))
