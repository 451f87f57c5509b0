"""The report as one JSON document, made from a run's outcome alone; the page and the table are views of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from smelt.compress.chain.run import Chain, Outcome, Step
from smelt.compress.chain.store import settings_of
from smelt.train.lineage import hardware, libraries

FORMAT = 1


def report_of(
    chain: Chain, outcome: Outcome, *, name: str, command: str = "", notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Every figure the run measured, by stage; `rows` has the source first, and the control where there is one.

    name: of the source. command: what makes it again. notes: what a reader must know of the figures.
    """
    material = chain.material
    rows = [_row("source", outcome.source_measured, hash=outcome.source.hash)]
    rows += [_stage_row(step) for step in outcome.steps]
    found = {
        "format": FORMAT,
        "source": name,
        "command": command,
        "passed": outcome.passed,
        "gates": [dataclasses.asdict(verdict) for verdict in outcome.verdicts],
        "flags": [*(flag for step in outcome.steps for flag in step.flags), *outcome.flags],
        "notes": list(notes),
        "rows": rows,
        "control": None if outcome.control is None else _stage_row(outcome.control) | {"name": "control"},
        "change": change(rows[0], rows[-1]),
        "wall_s": round(sum(step.done.wall_s for step in outcome.steps), 1),
        "material": {
            "calibration": material.calibration.source,
            "calibration_digest": material.calibration.digest,
            "held_out_bytes": material.held_out_bytes,
            "held_out_tokens": sum(batch.num_learned for batch in material.held_out),
            "digest": material.digest,
        },
        "measured_as": dataclasses.asdict(chain.measuring),
        "hardware": hardware("cpu"),
        "libraries": libraries(),
    }
    values: dict[str, Any] = json.loads(json.dumps(found))
    return values


def change(source: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, float | None]:
    """The result against the source: times smaller, times faster, and what it cost."""
    before, after = source["measured"], result["measured"]
    old, new = before["decode_tok_s"], after["decode_tok_s"]
    return {
        "bytes_ratio": after["bytes"] / before["bytes"],
        "parameters_ratio": after["parameters"] / before["parameters"],
        "decode_ratio": None if old is None or new is None else new["value"] / old["value"],
        "bpb_increase": after["bpb_increase"]["value"],
        "agreement": after["agreement"]["value"],
    }


def _stage_row(step: Step) -> dict[str, Any]:
    done = step.done
    row = _row(done.name, step.measured, hash=done.output)
    return row | {
        "id": done.id,
        "settings": done.settings,
        "facts": done.facts,
        "wall_s": done.wall_s,
        "flags": list(step.flags),
    }


def _row(name: str, measured: Mapping[str, Any], *, hash: str) -> dict[str, Any]:
    return {"name": name, "hash": hash, "measured": dict(measured)}


def plan_of(chain: Chain) -> list[dict[str, Any]]:
    """The stages and their settings, before anything ran."""
    return [{"name": stage.name, "settings": settings_of(stage)} for stage in chain.stages]
