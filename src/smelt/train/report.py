"""Progress: a line now and then, on the terminal and in `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Report:
    """One line of progress.

    loss: per counted token or pair since the last line, in nats where the objective's are; logs: the objective's other
    means over the same. tokens_per_s: all processes together, padding included. left_s: -1 while a deadline has not
    settled the end.
    """

    step: int
    total_steps: int
    stage: str
    loss: float
    gradient_norm: float
    scale: float
    num_tokens: int
    tokens_per_s: float
    elapsed_s: float
    left_s: float
    logs: Mapping[str, float] = field(default_factory=dict)


def print_report(report: Report) -> None:
    """A plain line on the terminal."""
    print(line(report), flush=True)  # noqa: T201


def line(report: Report) -> str:
    """The report in words."""
    left = f"{report.left_s / 60:.1f} min left" if report.left_s >= 0 else "until the deadline"
    logs = "".join(f"  {name} {value:.4g}" for name, value in report.logs.items())
    return (
        f"step {report.step:5d} {report.stage:<9} loss {report.loss:.4f}{logs}  rate x{report.scale:.2f}  "
        f"{report.num_tokens / 1e6:.2f}M tokens  {report.tokens_per_s:,.0f}/s  {left}"
    )


def append(folder: Path, report: Report) -> None:
    """Add a line to the folder's metrics."""
    with (folder / METRICS).open("a") as file:
        file.write(json.dumps(asdict(report)) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines so far, a last one that a kill cut short left out."""
    path = folder / METRICS
    lines = path.read_text().splitlines() if path.is_file() else []
    found = []
    for text in lines:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def cut_after(folder: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run takes again."""
    lines = read(folder)
    kept = [entry for entry in lines if entry["step"] <= step]
    if lines:
        (folder / METRICS).write_text("".join(json.dumps(entry) + "\n" for entry in kept))
