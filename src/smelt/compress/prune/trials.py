"""Shapes put to the test: held-out bits per byte of the sliced model, as it is or after a short distillation.

What was measured stays in the scratch folder under the shape's name; a stage that was killed measures the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from smelt.compress.prune.importance import Importance, Shape, kept_at
from smelt.compress.prune.slice import Kept, sliced
from smelt.compress.quality import bits_per_byte
from smelt.compress.stage import Work
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import TrainingStoppedError
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.distill.objective import Distillation
from smelt.train.loop import Run, Stage
from smelt.train.teachers.online import DecoderTeacher

# A fifth of the rates of a run from scratch: a pruned model is repaired, not taught anew (Muralidharan et al. 2024).
REPAIR = OptimizerConfig(muon_lr=0.004, adam_lr=6e-4, weight_decay=0.0)


@dataclass(frozen=True)
class Slicer:
    """Makes the pruned model of a shape. gains: of the norms, for what is kept."""

    config: DecoderConfig
    tensors: Mapping[str, NDArray[np.float32]]
    importance: Importance
    gains: Callable[[Kept], Mapping[str, float]]

    def __call__(self, shape: Shape) -> tuple[DecoderConfig, Mapping[str, NDArray[np.float32]]]:
        """Configuration and tensors."""
        kept = kept_at(self.importance, self.config, shape)
        return sliced(self.config, self.tensors, kept, self.gains(kept))


class Trials:
    """Measures shapes, each once."""

    def __init__(self, slicer: Slicer, work: Work, device: torch.device, *, steps: int = 0, seed: int = 0) -> None:
        self.slicer, self.work, self.device = slicer, work, device
        self.steps, self.seed = steps, seed
        self._path = work.scratch / "trials.json"
        self._known: dict[str, float] = json.loads(self._path.read_text()) if self._path.is_file() else {}

    def pruned(self, shape: Shape) -> float:
        """Held-out bits per byte right after slicing."""
        return self._once(f"pruned {_words(shape)}", lambda: self.measured(self._model(shape)))

    def distilled(self, shape: Shape) -> float:
        """The same after `steps` steps of distillation from the chain's teacher."""
        return self._once(f"distilled {self.steps} {_words(shape)}", lambda: self._distilled(shape))

    def whole(self, model: Decoder) -> float:
        """Of the source itself."""
        return self._once("whole", lambda: self.measured(model))

    def measured(self, model: Decoder) -> float:
        """Bits per byte. Raises TrainingStoppedError once the stage is asked to stop."""
        return bits_per_byte(model, self.work.material, self.device, self.check)

    def check(self) -> None:
        """Raises TrainingStoppedError once the stage is asked to stop."""
        if self.work.stopping.is_set():
            raise TrainingStoppedError("prune: stopped; what was measured is kept, called again it goes on")

    def _model(self, shape: Shape) -> Decoder:
        return Decoder.from_tensors(*self.slicer(shape)).to(self.device).eval()

    def _distilled(self, shape: Shape) -> float:
        teacher = Decoder.from_tensors(self.work.teacher.config, self.work.teacher.tensors)
        student = self._model(shape).train()
        shared = min(teacher.config.vocab_size, student.config.vocab_size)
        objective = Distillation(DecoderTeacher(teacher, shared))
        run = Run(
            model=student,
            stages=[Stage(name="trial", stream=self.work.material.stream(self.seed), objective=objective)],
            config=TrainConfig(
                optimizer=REPAIR,
                schedule=ScheduleConfig(total_steps=self.steps, warmup_steps=max(1, self.steps // 10)),
                seed=self.seed,
                device=str(self.device),
            ),
            folder=self.work.scratch / "trials" / _words(shape),
            on_report=lambda _: None,
            stopping=self.work.stopping,
        )
        run.train()
        return self.measured(student.eval())

    def _once(self, key: str, measure: Callable[[], float]) -> float:
        if key not in self._known:
            self.check()
            self._known[key] = measure()
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._known, indent=1))
            os.replace(partial, self._path)
        return self._known[key]


def _words(shape: Shape) -> str:
    return "-".join(map(str, astuple(shape)))
