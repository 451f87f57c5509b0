"""What an artifact is worth: size, speed and memory here, bits per byte of held-out text, closeness to the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smelt.checkpoint import Checkpoint
from smelt.compress.chain.speed import SpeedSettings, measure_speed
from smelt.compress.chain.store import Artifact
from smelt.compress.quality import quality
from smelt.compress.quantize.few_bits import in_few_bits
from smelt.compress.stage import Material
from smelt.model.decoder import Decoder
from smelt.train.hardware import pick_device

Scores = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """speed: how it is run. suites: names of evals, answered through `tasks`, a function of the artifact's folder."""

    speed: SpeedSettings = SpeedSettings()
    suites: tuple[str, ...] = ()


def measure(
    artifact: Artifact,
    checkpoint: Checkpoint,
    teacher: Decoder,
    material: Material,
    settings: MeasureSettings,
    tasks: Callable[[Path, Sequence[str]], Scores] | None = None,
) -> dict[str, Any]:
    """Everything the report says of one artifact, JSON values; figures that are estimates carry n and an interval."""
    found: dict[str, Any] = {
        "parameters": checkpoint.config.num_parameters,
        "bytes": artifact.num_bytes,
        "weight_bytes": artifact.weight_bytes,
        "stored": sorted(checkpoint.stored_dtypes),
        **quality(decoder_of(checkpoint).to(pick_device("auto")), teacher, material),
    }
    speed = measure_speed(artifact.folder, settings.speed)
    found |= {key: speed.pop(key) for key in ("prefill_tok_s", "decode_tok_s", "peak_memory_bytes")}
    found["run_as"] = speed
    if settings.suites and tasks is not None:
        found["tasks"] = dict(tasks(artifact.folder, settings.suites))
    return found


def decoder_of(checkpoint: Checkpoint) -> Decoder:
    """What the folder computes, in floating point: of weights in few bits what they stand for, inputs rounded too."""
    if checkpoint.scheme is None:
        return Decoder.from_tensors(checkpoint.config, checkpoint.tensors)
    return in_few_bits(checkpoint.config, checkpoint.tensors, checkpoint.quantized, checkpoint.scheme)
