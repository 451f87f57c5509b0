"""A run's curves as files: `curves.csv` for a table, `curves.svg` for the eye. Both from `metrics.jsonl`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from smelt.train import report

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 760, 360, 64, 28, 44
_INK, _FAINT, _LINE = "#333", "#ddd", "#b5442c"


def write_curves(folder: Path) -> list[Path]:
    """Write both files into the run's folder; returns their paths, none where nothing was reported."""
    rows = report.read(folder)
    if not rows:
        return []
    table, picture = folder / "curves.csv", folder / "curves.svg"
    with table.open("w", newline="") as file:
        logs = sorted({name for row in rows for name in row.get("logs", {})})
        plain = [name for name in rows[0] if name != "logs"]
        writer = csv.writer(file)
        writer.writerow([*plain, *logs])
        writer.writerows([*(row[n] for n in plain), *(row.get("logs", {}).get(n, "") for n in logs)] for row in rows)
    picture.write_text(svg(rows), encoding="utf-8")
    return [table, picture]


def svg(rows: Sequence[dict[str, Any]]) -> str:
    """Loss against tokens, with the names of the stages where they begin."""
    points = [(float(row["num_tokens"]), float(row["loss"])) for row in rows if math.isfinite(row["loss"])]
    xs, ys = ticks(0.0, max(x for x, _ in points)), ticks(min(y for _, y in points), max(y for _, y in points))

    def x(value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - 16) * value / xs[-1], 1)

    def y(value: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (ys[-1] - value) / (ys[-1] - ys[0]), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{_INK}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    for tick in ys:
        parts.append(f'<path d="M{_LEFT} {y(tick)}H{_WIDTH - 16}" stroke="{_FAINT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:.4g}</text>')
    parts += [
        f'<text x="{x(tick)}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{short(tick)}</text>' for tick in xs
    ]
    parts += _stage_marks(rows, x)
    path = " ".join(f"{x(a)},{y(b)}" for a, b in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>')
    parts.append(f'<text x="{_LEFT}" y="16">loss</text>')
    parts.append(f'<text x="{_WIDTH - 16}" y="{_HEIGHT - 8}" text-anchor="end">tokens</text></svg>')
    return "\n".join(parts) + "\n"


def _stage_marks(rows: Sequence[dict[str, Any]], x: Any) -> list[str]:
    found, before = [], None
    for i, row in enumerate(rows):
        if row["stage"] != before:
            at = x(float(rows[i - 1]["num_tokens"]) if i else 0.0)
            found.append(f'<path d="M{at} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="{_FAINT}" stroke-dasharray="3 3"/>')
            found.append(f'<text x="{at + 4}" y="{_TOP + 12}" fill="#777">{escape(str(row["stage"]))}</text>')
            before = row["stage"]
    return found


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that enclose [low, high]."""
    span = max(high - low, abs(high) * 1e-6, 1e-9)
    raw = span / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first, last = math.floor(low / step), math.ceil((low + span) / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short(number: float) -> str:
    """12.5k, 3M, 1.2B: four digits at most."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"
