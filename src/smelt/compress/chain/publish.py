"""The published folder: the last artifact with its card, its lineage and its report, there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smelt.checkpoint import Checkpoint
from smelt.compress.chain.page import page
from smelt.compress.chain.run import Outcome, Step
from smelt.train.finetune.folder import base_name
from smelt.train.lineage import bare, chained, checked_chain, file_sha256

PUBLISHED = "published"
"""The step that ends a lineage and names every file of the folder with its hash."""

_CARRIED = ("languages", "licence", "trained_len", "can", "cannot", "data")


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """report.json and report.html; written whether the gates held or not."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "report.json", folder / "report.html"]
    paths[0].write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    paths[1].write_text(page(report), encoding="utf-8")
    return paths


def publish(
    outcome: Outcome,
    report: Mapping[str, Any],
    source: Checkpoint,
    data: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    name: str | None = None,
) -> Path:
    """Write the folder in place of an earlier one. data: where the material comes from, for the lineage.

    Raises CheckpointError for a source whose own lineage was changed.
    """
    title = name or f"{base_name(source)}-small"
    before = bare(checked_chain(source.folder))
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staging.chmod(0o755)
        for file in outcome.result.files:
            shutil.copyfile(outcome.result.folder / file, staging / file)
        write_report(report, staging)
        _write_json(staging / "card.json", card(outcome, report, source, title))
        files = {path.name: file_sha256(path) for path in sorted(staging.iterdir())}
        steps = [*before, *lineage_steps(outcome, source, data), {"step": PUBLISHED, "name": title, "files": files}]
        _write_json(staging / "lineage.json", {"chain": chained(steps)})
        for path in staging.iterdir():
            _flush(path)
        _exchange(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return folder


def lineage_steps(outcome: Outcome, source: Checkpoint, data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Source, material and every stage with what went in, what came out and what was measured of it."""
    base = {
        "step": "source",
        "name": base_name(source),
        "licence": (source.card or {}).get("licence", "not told"),
        "artifact": outcome.source.hash,
        "files": dict(outcome.source.files),
        "measured": dict(outcome.source_measured),
    }
    made = [_stage_step(step) for step in outcome.steps]
    return [base, {"step": "material", "data": [dict(row) for row in data]}, *made]


def _stage_step(step: Step) -> dict[str, Any]:
    done = step.done
    return {
        "step": done.name,
        "id": done.id,
        "input": done.input,
        "output": done.output,
        "files": done.files,
        "settings": done.settings,
        "facts": done.facts,
        "wall_s": done.wall_s,
        "made_with": done.made_with,
        "measured": dict(step.measured),
        "flags": list(step.flags),
    }


def card(outcome: Outcome, report: Mapping[str, Any], source: Checkpoint, name: str) -> dict[str, Any]:
    """What the folder is: the source's card where it still holds, and the chain's own numbers."""
    before = source.card or {}
    result = outcome.steps[-1].measured if outcome.steps else outcome.source_measured
    stages = [step.done.name for step in outcome.steps]
    figures = ("bytes", "bits_per_byte", "bpb_increase", "kl", "agreement", "decode_tok_s", "prefill_tok_s")
    return {
        "name": name,
        "summary": f"{base_name(source)}, made smaller by {', '.join(stages) or 'nothing'}.",
        "parameters": result["parameters"],
        "context_len": source.config.context_len,
        **{key: before[key] for key in _CARRIED if key in before},
        "base": {"name": base_name(source), "artifact": outcome.source.hash},
        "stages": stages,
        "change": report["change"],
        "measured": {key: result[key] for key in (*figures, "peak_memory_bytes")},
        "teacher": {key: outcome.source_measured[key] for key in figures},
        "held_out": report["material"],
        "flags": report["flags"],
        "scores": result.get("tasks") or "those of the base do not hold for it; `smelt eval` measures this folder",
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(staging: Path, folder: Path) -> None:
    """Give the finished folder its name; an earlier one steps aside first and returns if that fails."""
    if not folder.exists():
        staging.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(aside / folder.name)
    try:
        staging.rename(folder)
    except OSError:
        (aside / folder.name).rename(folder)
        raise
    shutil.rmtree(aside)
