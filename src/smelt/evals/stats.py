"""Intervals and tests: for counted successes, for ratios of sums, for paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_Z95 = 1.959963984540054
NUM_RESAMPLES = 2000


def wilson(successes: float, total: float) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927). (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    p, z2 = successes / total, _Z95 * _Z95
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def proportion(successes: int, total: int) -> dict[str, Any]:
    """A result row: share, n and interval, rounded to four places."""
    return _result(successes / total if total else 0.0, total, wilson(successes, total))


def clustered(successes: Sequence[bool], groups: Sequence[str]) -> dict[str, Any]:
    """`proportion` where answers of one group (questions on one text, one problem in three languages) move together.

    Wilson's interval over an effective n: n divided by the design effect (Kish 1965), never above n; where all answers
    agree and nothing can be estimated, the number of groups.
    """
    total = len(successes)
    num_groups = len(set(groups))
    if num_groups in (0, total):
        return proportion(sum(successes), total)
    p = sum(successes) / total
    effective = float(num_groups)
    if 0 < p < 1 and num_groups > 1:
        residuals = dict.fromkeys(groups, 0.0)
        for success, group in zip(successes, groups, strict=True):
            residuals[group] += success - p
        spread = num_groups / (num_groups - 1) * sum(value * value for value in residuals.values()) / total**2
        effective = min(float(total), max(1.0, p * (1 - p) / spread)) if spread else float(total)
    return {**_result(p, total, wilson(p * effective, effective)), "num_groups": num_groups}


def ratio(numerators: Sequence[float], denominators: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """Sum over sum with a bootstrap interval over groups (percentile, 2,000 resamples, always the same ones).

    A mean is a ratio with denominators of one; bits per byte is one of bits to bytes.
    """
    total = sum(denominators)
    tops, bottoms = _by_group(numerators, groups), _by_group(denominators, groups)
    if not total:
        return _result(0.0, len(numerators), (0.0, 0.0))
    draws = _draws(len(tops))
    resampled = _safe_ratio(draws @ tops, draws @ bottoms)
    return _result(sum(numerators) / total, len(numerators), _percentiles(resampled))


def paired_ratio(
    ours: tuple[Sequence[float], Sequence[float]],
    theirs: tuple[Sequence[float], Sequence[float]],
    groups: Sequence[str],
) -> dict[str, Any]:
    """Difference of two ratios over the same questions, each given as (numerators, denominators), ours less theirs.

    The bootstrap draws groups for both alike, so what makes a question hard for both cancels out.
    """
    sums = [_by_group(values, groups) for side in (ours, theirs) for values in side]
    whole = [float(values.sum()) for values in sums]
    draws = _draws(len(sums[0]))
    a, b, c, d = (draws @ values for values in sums)
    difference = _safe_ratio(a, b) - _safe_ratio(c, d)
    value = (whole[0] / whole[1] if whole[1] else 0.0) - (whole[2] / whole[3] if whole[3] else 0.0)
    return _result(value, len(ours[0]), _percentiles(difference))


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """Exact two-sided p that the answers only one of two got right fall so unevenly by chance (McNemar 1947)."""
    total, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << total))


def _result(value: float, num: int, interval: tuple[float, float]) -> dict[str, Any]:
    return {"value": round(value, 4), "n": num, "interval95": [round(bound, 4) for bound in interval]}


def _by_group(values: Sequence[float], groups: Sequence[str]) -> NDArray[np.float64]:
    import numpy as np

    sums: dict[str, float] = {}
    for value, group in zip(values, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + value
    return np.array(list(sums.values()), np.float64)


def _draws(num_groups: int) -> NDArray[np.float64]:
    """[NUM_RESAMPLES, num_groups]: how often each group is drawn."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), NUM_RESAMPLES).astype(np.float64)


def _safe_ratio(tops: NDArray[np.float64], bottoms: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    return np.divide(tops, bottoms, out=np.zeros_like(tops), where=bottoms != 0)


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    import numpy as np

    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
