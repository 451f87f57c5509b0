"""A model made small: from what a user asks for to a chain, its run, its report and the published folder.

<out>/material/     text the model wrote of itself
<out>/stages/       every stage's artifact, by content (`chain.store`)
<out>/report.json   and report.html: written whether the gates held or not
<out>/model/        the published folder
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smelt.checkpoint import Checkpoint, open_checkpoint, resolve_model
from smelt.compress.calibration import SELF
from smelt.compress.chain.gates import Gates
from smelt.compress.chain.material import MaterialSettings, make_material
from smelt.compress.chain.measure import MeasureSettings
from smelt.compress.chain.needs import needs_of
from smelt.compress.chain.publish import publish, write_report
from smelt.compress.chain.report import report_of
from smelt.compress.chain.run import Chain, Outcome, Watch, run_chain
from smelt.compress.chain.store import Artifact, artifact_of, settings_of, write_json
from smelt.compress.stage import Needs, Progress, Stage
from smelt.compress.targets import Sizes, Target, aimed, read_target
from smelt.compress.words import DEFAULT, changed, scratch_control, stage_of
from smelt.core.cost import Floats, Rates, training_flops
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError
from smelt.engine.rates import measure_rates
from smelt.generate.options import free_memory_bytes
from smelt.train.finetune.folder import base_name, stored_dtype

_SELF_NOTE = (
    "held-out text is what the model wrote itself: KL and agreement hold for it, bits per byte say little; "
    "--train-on takes a text, conversations or a corpus"
)
_FLOATS: dict[str, Floats] = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class ShrinkSettings:
    """model: a folder, a shipped name or a Hugging Face id. to: a target (`targets.read_target`), or none.

    stages: words (`words.WORDS`), the default chain where there are none; changes: `stage.key=value`.
    control: also train the result's shape from scratch. name: of the result.
    """

    model: str
    to: str = ""
    stages: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    material: MaterialSettings = MaterialSettings()
    gates: Gates = Gates()
    measuring: MeasureSettings = MeasureSettings()
    control: bool = False
    name: str | None = None
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would be done. needs: by stage, with the source's shape as the upper bound. notes: what there is to say."""

    source: Checkpoint
    artifact: Artifact
    stages: tuple[Stage, ...]
    control: Stage | None
    gates: Gates
    needs: tuple[Needs, ...]
    batch_tokens: int
    notes: tuple[str, ...] = ()

    def training_flops(self, stage: Stage) -> float:
        """About what a stage that trains computes, a teacher's forward pass at every token included; 0 for others."""
        steps, batch = getattr(stage, "steps", None), getattr(stage, "batch", None)
        if steps is None or batch is None:
            return 0.0
        tokens = getattr(stage, "tokens", None) or steps * batch * self.batch_tokens
        row_len = min(self.source.config.context_len, self.batch_tokens)
        return float(tokens * 4 / 3 * training_flops(self.source.config, row_len))

    def document(self, out: Path) -> dict[str, Any]:
        """As JSON values, with what is free here."""
        near = next(path for path in (out, *out.absolute().parents) if path.exists())
        return {
            "source": {
                "name": base_name(self.source),
                "parameters": self.source.config.num_parameters,
                "bytes": self.artifact.num_bytes,
            },
            "stages": [
                {
                    "name": stage.name,
                    "memory_bytes": needs.memory_bytes,
                    "disk_bytes": needs.disk_bytes,
                    "flops": needs.flops or self.training_flops(stage),
                    "settings": settings_of(stage),
                }
                for stage, needs in zip(self.stages, self.needs, strict=True)
            ],
            "control": None if self.control is None else settings_of(self.control),
            "gates": {key: value for key, value in vars(self.gates).items() if value is not None},
            "free_memory_bytes": free_memory_bytes(),
            "free_disk_bytes": shutil.disk_usage(near).free,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """folder: the published one, None where a gate failed. report: as in report.json."""

    folder: Path | None
    report: dict[str, Any]
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class ShrinkWatch:
    """Who is told: of the material's making, then of the chain (`chain.run.Watch`)."""

    chain: Watch = field(default_factory=Watch)
    on_material: Callable[[Progress], None] = lambda _: None


def kept_rates(config: DecoderConfig, out: Path | None) -> Rates:
    """What this machine does, measured once for a chain: rates.json of `out`, so that one that goes on aims the same.

    out None: measured and not kept.
    """
    path = None if out is None else out / "rates.json"
    if path is not None and path.is_file():
        return Rates(**json.loads(path.read_text(encoding="utf-8")))
    found = measure_rates(config)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(found))
    return found


def planned(settings: ShrinkSettings, out: Path | None = None) -> Plan:
    """Stages, gates and estimates, before anything is computed; a target in tokens a second asks this machine.

    Raises InvalidRequestError for words, settings and targets that do not fit, CheckpointError for the model.
    """
    source = open_checkpoint(resolve_model(settings.model))
    artifact = artifact_of(source.folder)
    words = settings.stages or DEFAULT
    stages = tuple(stage_of(word, source.config) for word in words)
    notes: list[str] = []
    gates = settings.gates
    if settings.to:
        target: Target = read_target(settings.to, artifact.num_bytes)
        sizes = Sizes(
            config=source.config,
            floats=_FLOATS[stored_dtype(source)],
            other_bytes=artifact.num_bytes - artifact.weight_bytes,
        )
        here = kept_rates(source.config, out) if target.kind == "speed" else None
        stages, notes = aimed(stages, target, sizes, here, chosen=bool(settings.stages))
        gates = target.gates(gates)
    stages = changed(stages, settings.changes)
    if settings.material.train_on == SELF:
        notes = [*notes, _SELF_NOTE]
    return Plan(
        source=source,
        artifact=artifact,
        stages=stages,
        control=scratch_control(stages) if settings.control else None,
        gates=gates,
        needs=tuple(needs_of(stage, source.config) for stage in stages),
        batch_tokens=settings.material.rows * min(settings.material.row_len, source.config.context_len),
        notes=tuple(notes),
    )


def shrink(
    settings: ShrinkSettings,
    out: Path,
    watch: ShrinkWatch = ShrinkWatch(),
) -> Shrunk:
    """Plan, run, report, and publish where every gate holds. Called again with the same `out` it goes on.

    Raises what `planned` and `run_chain` raise.
    """
    plan = planned(settings, out)
    if out.resolve() in (plan.source.folder.resolve(), *plan.source.folder.resolve().parents):
        raise CheckpointError(f"--out {out.name}: the source lies in there; choose another folder")
    say = watch.chain.say
    for note in plan.notes:
        say(note)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    material, data = make_material(plan.source, settings.material, out / "material", watch.on_material)
    say(f"material: {material.calibration.source}; {time.monotonic() - began:,.1f} s")
    chain = Chain(
        stages=plan.stages,
        material=material,
        gates=plan.gates,
        measuring=settings.measuring,
        control=plan.control,
    )
    outcome = run_chain(chain, plan.source.folder, out, watch.chain)
    report = report_of(chain, outcome, name=base_name(plan.source), command=settings.command, notes=plan.notes)
    write_report(report, out)
    folder = None
    if outcome.passed:
        folder = publish(outcome, report, plan.source, data, out / "model", name=settings.name)
    return Shrunk(folder=folder, report=report, outcome=outcome)
