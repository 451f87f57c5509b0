"""A report's figures in words and its pictures in SVG. Shared by the page and the terminal's table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from smelt.train.curves import short, ticks

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 360, 72, 150, 24, 48
_LINE = 13  # height of a label
_INK, _FAINT = "#333", "#ddd"
_COLOURS = ("#777", "#b5442c", "#2c6fb5", "#3a8a4d", "#8a5aa8", "#b58a2c", "#2ca5a5")

COLUMNS: tuple[tuple[str, str], ...] = (
    ("stage", "stage"),
    ("parameters", "parameters"),
    ("bytes", "on disk"),
    ("bits_per_byte", "bits per byte"),
    ("kl", "KL to teacher"),
    ("agreement", "agreement"),
    ("decode_tok_s", "decode tok/s"),
    ("prefill_tok_s", "prefill tok/s"),
    ("peak_memory_bytes", "peak memory"),
    ("wall_s", "made in"),
)
"""Key of a row's figure and its heading."""


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the report as text, one cell per column."""
    measured = row["measured"]
    peak = measured["peak_memory_bytes"]
    return [
        str(row["name"]),
        short(measured["parameters"]),
        size(measured["bytes"]),
        estimate(measured["bits_per_byte"], 4),
        estimate(measured["kl"], 4),
        estimate(measured["agreement"], 3),
        estimate(measured["decode_tok_s"], 0),
        estimate(measured["prefill_tok_s"], 0),
        "—" if peak is None else size(peak),
        f"{row['wall_s']:,.0f} s" if "wall_s" in row else "",
    ]


def estimate(measured: Mapping[str, Any] | None, digits: int) -> str:
    """A value with its interval; a dash where it was not measured."""
    if measured is None:
        return "—"
    low, high = measured["interval95" if "interval95" in measured else "interval"]
    return f"{measured['value']:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def plain(value: float | None) -> str:
    """A gate's figure: 1,932,921 or 0.02."""
    if value is None:
        return "nothing"
    return f"{value:,.0f}" if value == round(value) else f"{value:.6g}"


def size(num_bytes: float) -> str:
    """12.3 MB."""
    for unit, count in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= count:
            return f"{num_bytes / count:,.2f} {unit}"
    return f"{num_bytes:,.0f} bytes"


def curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Size against quality, a point per artifact joined in order; its area is the decode speed."""
    xs = [row["measured"]["bytes"] / 1e6 for row in rows]
    ys = [row["measured"]["bits_per_byte"]["value"] for row in rows]
    speeds = [(row["measured"]["decode_tok_s"] or {"value": 0.0})["value"] for row in rows]
    across, up = ticks(0.0, max(xs)), ticks(min(ys), max(ys))

    def x(value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * value / across[-1], 1)

    def y(value: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (up[-1] - value) / (up[-1] - up[0]), 1)

    parts = [_open(_HEIGHT, "bits per held-out byte against megabytes on disk; area: decode speed")]
    for tick in up:
        parts.append(f'<path d="M{_LEFT} {y(tick)}H{_WIDTH - _RIGHT}" stroke="{_FAINT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:.4g}</text>')
    for tick in across:
        parts.append(f'<text x="{x(tick)}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:.4g}</text>')
    points = " ".join(f"{x(a)},{y(b)}" for a, b in zip(xs, ys, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{_FAINT}" stroke-width="2"/>')
    fastest = max(speeds) or 1.0
    beside = _apart([(x(a), y(b) + 4) for a, b in zip(xs, ys, strict=True)])
    for i, row in enumerate(rows):
        colour, radius = _COLOURS[i % len(_COLOURS)], round(4 + 14 * math.sqrt(speeds[i] / fastest), 1)
        told = f"{row['name']} {speeds[i]:,.0f} tok/s" if speeds[i] else str(row["name"])
        parts.append(f'<circle cx="{x(xs[i])}" cy="{y(ys[i])}" r="{radius}" fill="{colour}" fill-opacity="0.55"/>')
        parts.append(f'<text x="{round(x(xs[i]) + radius + 4, 1)}" y="{beside[i]}">{escape(told)}</text>')
    parts.append(f'<text x="{_LEFT}" y="14">bits per byte</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">MB on disk</text></svg>')
    return "\n".join(parts)


def _apart(places: Sequence[tuple[float, float]]) -> list[float]:
    """Heights of labels at (x, y), moved down where one would stand in another."""
    found: dict[int, float] = {}
    for i in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, y = places[i]
        for k in sorted(found, key=lambda k: found[k]):
            if abs(places[k][0] - x) < _RIGHT and abs(found[k] - y) < _LINE:
                y = found[k] + _LINE
        found[i] = round(y, 1)
    return [found[i] for i in range(len(places))]


def bars(title: str, values: Sequence[tuple[str, float | None, str]]) -> str:
    """Horizontal bars: (name, value, the value in words)."""
    height = 30 + 24 * len(values)
    largest = max((value for _, value, _ in values if value is not None), default=0.0) or 1.0
    left, room = 110, _WIDTH - 110 - 250
    parts = [_open(height, title), f'<text x="0" y="14" font-weight="bold">{escape(title)}</text>']
    for i, (name, value, words) in enumerate(values):
        y, width = 26 + 24 * i, 0.0 if value is None else round(room * max(0.0, value) / largest, 1)
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{left}" y="{y}" width="{max(1.0, width)}" height="18" fill="{_COLOURS[i % len(_COLOURS)]}"/>'
        )
        parts.append(f'<text x="{left + max(1.0, width) + 6}" y="{y + 13}">{escape(words)}</text>')
    return "\n".join([*parts, "</svg>"])


def _open(height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12" fill="{_INK}" role="img">'
        f'<title>{escape(title)}</title><rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
    )
