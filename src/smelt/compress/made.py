"""What every stage does the same way: the folder it leaves, and a run of the one loop inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from smelt.checkpoint import Checkpoint, save_checkpoint
from smelt.checkpoint.quantized import QuantizedWeight
from smelt.checkpoint.safetensors import FloatDtype
from smelt.compress.stage import Progress, Work
from smelt.core.decoder import DecoderConfig
from smelt.core.quantization import Scheme
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.finetune.folder import kept_files, stored_dtype
from smelt.train.report import Report, line


def write_made(
    work: Work,
    source: Checkpoint,
    config: DecoderConfig,
    tensors: Mapping[str, NDArray[Any]],
    *,
    dtype: FloatDtype | None = None,
    quantized: Mapping[str, QuantizedWeight] | None = None,
    scheme: Scheme | None = None,
) -> None:
    """Write `work.out` with what travels with the source (tokenizer, templates), in its dtype unless told otherwise."""
    save_checkpoint(
        work.out,
        config,
        tensors,
        dtype=dtype or stored_dtype(source),
        files=kept_files(source.folder),
        replace=True,
        quantized=quantized,
        scheme=scheme,
    )


class Trains(Protocol):
    """The settings that stages with a training have in common."""

    @property
    def batch(self) -> int:
        """Batches of the material's stream a step."""
        ...

    @property
    def seed(self) -> int:
        """Of the stream and the run."""
        ...

    @property
    def workers(self) -> int:
        """Threads that each compute whole batches."""
        ...

    @property
    def device(self) -> str:
        """Where it is computed."""
        ...

    @property
    def checkpoint_s(self) -> float:
        """Seconds between checkpoints."""
        ...


def train_config(
    stage: Trains, steps: int, optimizer: OptimizerConfig, *, warmup: float = 0.05, decay: float = 0.4
) -> TrainConfig:
    """warmup and decay: shares of the steps."""
    return TrainConfig(
        optimizer=optimizer,
        schedule=ScheduleConfig(total_steps=steps, warmup_steps=math.ceil(warmup * steps), decay_share=decay),
        accumulate=stage.batch,
        seed=stage.seed,
        workers=min(stage.workers, stage.batch),
        device=stage.device,
        checkpoint_s=stage.checkpoint_s,
        log_every=max(1, min(10, steps // 20)),
    )


def telling(work: Work, steps: int) -> Callable[[Report], None]:
    """A run's `on_report`: its line, and its progress with the time left."""

    def told(report: Report) -> None:
        work.say(line(report))
        left_s = report.left_s if report.left_s >= 0 else None
        work.on_progress(Progress(unit="steps", done=report.step, total=steps, left_s=left_s))

    return told
