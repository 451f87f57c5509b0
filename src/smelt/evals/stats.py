"""Intervals for counted successes."""

from __future__ import annotations

import math

_Z95 = 1.959963984540054


def wilson(successes: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927). (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    p, z2 = successes / total, _Z95 * _Z95
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def proportion(successes: int, total: int) -> dict[str, float | int | list[float]]:
    """A result row: share, n and interval, rounded to four places."""
    low, high = wilson(successes, total)
    share = successes / total if total else 0.0
    return {"value": round(share, 4), "n": total, "interval95": [round(low, 4), round(high, 4)]}
