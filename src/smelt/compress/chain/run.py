"""The chain as a value, and its run: stage by stage, each kept by content, measured, gated; then published or not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress.chain.flags import final_flags, flags
from smelt.compress.chain.gates import Gates, Verdict, verdicts
from smelt.compress.chain.measure import MeasureSettings, Scores, measure
from smelt.compress.chain.needs import check_room, explained, needs_of
from smelt.compress.chain.store import (
    Artifact,
    Done,
    Place,
    artifact_of,
    changed_files,
    place_of,
    settings_of,
    stage_id,
    write_json,
)
from smelt.compress.stage import Material, Progress, Stage, Work
from smelt.core.errors import CheckpointError, TrainingStoppedError
from smelt.model.decoder import Decoder
from smelt.train.lineage import digest, hardware, libraries
from smelt.train.state import locked

_MEASURE_FORMAT = 1  # another one, and kept measurements are taken anew


@dataclass(frozen=True, kw_only=True)
class Chain:
    """stages: in order, each the next one's input. control: a stage run on the result, measured beside it and not
    published: the same shape trained from scratch.
    """

    stages: tuple[Stage, ...]
    material: Material
    gates: Gates = Gates()
    measuring: MeasureSettings = MeasureSettings()
    control: Stage | None = None


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told. on_progress: the stage's number (from 0), how many there are, its name and its progress.

    tasks: scores of named eval suites for a model's folder. `stopping`, once set, ends the run with all in order.
    """

    say: Callable[[str], None] = print
    on_progress: Callable[[int, int, str, Progress], None] = lambda *_: None
    tasks: Callable[[Path, Sequence[str]], Scores] | None = None
    stopping: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A finished stage with what was measured of its artifact. flags: claims it did not keep."""

    done: Done
    artifact: Artifact
    measured: Mapping[str, Any]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All of a run, in values; the report, the lineage and the card are made from it and from nothing else."""

    source: Artifact
    source_measured: Mapping[str, Any]
    steps: tuple[Step, ...]
    verdicts: tuple[Verdict, ...]
    flags: tuple[str, ...]
    control: Step | None = None

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def result(self) -> Artifact:
        """What the last stage made."""
        return self.steps[-1].artifact if self.steps else self.source


def run_chain(chain: Chain, source: Path, folder: Path, watch: Watch = Watch()) -> Outcome:
    """Run what is not done yet. Called again with the same folder it goes on; the result is the same to the bit.

    Raises CheckpointError where another process works in the folder, where memory or disk cannot hold a stage, and
    for files changed behind the chain's back; TrainingStoppedError after `stopping`; whatever a stage raises.
    """
    with locked(folder):
        return _Runner(chain, source, folder, watch).run()


class _Runner:
    """One run. Holds the teacher, so that it is loaded once."""

    def __init__(self, chain: Chain, source: Path, folder: Path, watch: Watch) -> None:
        self.chain, self.folder, self.watch = chain, folder, watch
        self.teacher = open_checkpoint(source)
        self.source = artifact_of(source)
        self._model: Decoder | None = None

    def run(self) -> Outcome:
        at = self.source
        artifacts: list[tuple[Done, Artifact]] = []
        for index, stage in enumerate(self.chain.stages):
            done, at = self._made(index, stage, at)
            artifacts.append((done, at))
        control = None
        if self.chain.control is not None:
            control = self._made(len(self.chain.stages), self.chain.control, self._floating(artifacts))
        return self._measured(artifacts, control)

    def _floating(self, artifacts: Sequence[tuple[Done, Artifact]]) -> Artifact:
        """The last artifact that still is in floating point: the shape that a control is trained in."""
        for _, artifact in reversed(artifacts):
            if not _quantized(open_checkpoint(artifact.folder)):
                return artifact
        return self.source

    def _made(self, index: int, stage: Stage, source: Artifact) -> tuple[Done, Artifact]:
        """The stage's artifact, computed unless it is there."""
        identity = stage_id(stage, source.hash, self.source.hash, self.chain.material.digest)
        place = place_of(self.folder, stage, identity)
        done = place.done()
        if done is None:
            done = self._computed(index, stage, source, place, identity)
        else:
            self.watch.say(f"{stage.name}: done before ({done.wall_s:,.0f} s), result {done.output[:12]}")
        return done, Artifact(folder=place.out, files=done.files)

    def _computed(self, index: int, stage: Stage, source: Artifact, place: Place, identity: str) -> Done:
        if self.watch.stopping.is_set():
            raise TrainingStoppedError(f"stopped before {stage.name}; call again to go on")
        checkpoint = open_checkpoint(source.folder)
        needs = needs_of(stage, checkpoint.config)
        place.begin()
        check_room(stage.name, needs, self.folder)
        self.watch.say(f"{stage.name}: needs about {needs.memory_bytes / 1e6:,.0f} MB of memory")
        clock, rate = place.clock(), _Rate()

        def told(progress: Progress) -> None:
            clock.keep()
            self.watch.on_progress(index, len(self.chain.stages), stage.name, rate.completed(progress))

        work = Work(
            out=place.out,
            scratch=place.scratch,
            material=self.chain.material,
            teacher=self.teacher,
            say=self.watch.say,
            on_progress=told,
            stopping=self.watch.stopping,
        )
        with explained(stage.name, needs, self.folder):
            facts = stage.run(checkpoint, work)
            made = artifact_of(place.out)
        done = Done(
            id=identity,
            name=stage.name,
            settings=settings_of(stage),
            input=source.hash,
            output=made.hash,
            files=dict(made.files),
            facts=json.loads(json.dumps(facts)),
            wall_s=round(clock.seconds, 3),
            made_with={"libraries": libraries(), "hardware": _here()},
        )
        with explained(stage.name, needs, self.folder):
            place.finish(done)
        self.watch.say(f"{stage.name}: {done.wall_s:,.1f} s, result {done.output[:12]}")
        return done

    def _measured(self, artifacts: Sequence[tuple[Done, Artifact]], control: tuple[Done, Artifact] | None) -> Outcome:
        before = first = self._measure(self.source, "source", self.folder / "measured.json")
        steps = []
        for done, artifact in artifacts:
            found = self._measure(artifact, done.name, artifact.folder.parent / "measured.json")
            raised = tuple(flags(done.name, done.facts, before, found))
            steps.append(Step(done=done, artifact=artifact, measured=found, flags=raised))
            before = found
        beside = None
        if control is not None:
            done, artifact = control
            found = self._measure(artifact, "control", artifact.folder.parent / "measured.json")
            beside = Step(done=done, artifact=artifact, measured=found)
        rival = None if beside is None else (beside.measured, self._same_shape(steps, beside, first))
        return Outcome(
            source=self.source,
            source_measured=first,
            steps=tuple(steps),
            verdicts=tuple(verdicts(self.chain.gates, first, before)),
            flags=tuple(final_flags(first, before, rival)),
            control=beside,
        )

    @staticmethod
    def _same_shape(steps: Sequence[Step], control: Step, source: Mapping[str, Any]) -> Mapping[str, Any]:
        """What was measured of the artifact whose shape the control has."""
        shown = [step.measured for step in steps if step.done.output == control.done.input]
        return shown[-1] if shown else source

    def _measure(self, artifact: Artifact, name: str, kept: Path) -> Mapping[str, Any]:
        """Measured once: kept under a hash of the artifact, the material and the settings."""
        settings = self.chain.measuring
        key = digest(
            {
                "format": _MEASURE_FORMAT,
                "artifact": artifact.hash,
                "teacher": self.source.hash,
                "material": self.chain.material.digest,
                "settings": asdict(settings),
                "hardware": _here(),
            }
        )
        if kept.is_file():
            document = json.loads(kept.read_text(encoding="utf-8"))
            if document.get("key") == key:
                found: Mapping[str, Any] = document["measured"]
                return found
        if wrong := changed_files(artifact.folder, artifact.files):
            raise CheckpointError(f"{name}: {wrong[0]} while the chain ran")
        self.watch.say(f"measuring {name}")
        began = time.monotonic()
        checkpoint = open_checkpoint(artifact.folder)
        found = measure(artifact, checkpoint, self._teacher(), self.chain.material, settings, self.watch.tasks)
        write_json(kept, {"key": key, "measured": found, "wall_s": round(time.monotonic() - began, 3)})
        return found

    def _teacher(self) -> Decoder:
        if self._model is None:
            self._model = Decoder.from_tensors(self.teacher.config, self.teacher.tensors).eval()
        return self._model


class _Rate:
    """Time left, where a stage does not know it, from how fast it went since this call began."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._first = 0
        self._unit = ""

    def completed(self, progress: Progress) -> Progress:
        """With `left_s` where that can be told."""
        now = time.monotonic()
        if self._began is None or progress.unit != self._unit or progress.done < self._first:
            self._began, self._first, self._unit = now, progress.done, progress.unit
        if progress.left_s is not None or progress.done <= self._first:
            return progress
        each = (now - self._began) / (progress.done - self._first)
        return Progress(
            unit=progress.unit, done=progress.done, total=progress.total, left_s=each * (progress.total - progress.done)
        )


def _quantized(checkpoint: Checkpoint) -> bool:
    return checkpoint.scheme is not None


def _here() -> dict[str, Any]:
    return hardware("cuda" if torch.cuda.is_available() else "cpu")
