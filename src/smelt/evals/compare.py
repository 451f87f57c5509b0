"""Two models on the same questions: paired differences, which need far fewer questions than two separate intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smelt.evals.cases import identity
from smelt.evals.grade import Grade
from smelt.evals.stats import mcnemar, paired_ratio
from smelt.evals.suite import Row, cluster


def compare(ours: Sequence[Row], theirs: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Per suite, over the questions that both were asked: ours less theirs, with a paired bootstrap interval.

    Shares also have McNemar's exact p and how many only one of the two got right. For bits per byte less is better.
    """
    others = {(row.question.suite, identity(row.question)): row.grade for row in theirs if row.grade is not None}
    pairs: dict[str, list[tuple[Grade, Grade, str]]] = {}
    for index, row in enumerate(ours):
        other = others.get((row.question.suite, identity(row.question)))
        if row.grade is not None and other is not None:
            pairs.setdefault(row.question.suite, []).append((row.grade, other, cluster(row, index)))
    return {suite: _difference(found) for suite, found in pairs.items()}


def _difference(pairs: Sequence[tuple[Grade, Grade, str]]) -> dict[str, Any]:
    groups = [group for _, _, group in pairs]
    found: dict[str, Any] = {}
    if all(a.bits is not None and b.bits is not None for a, b, _ in pairs):
        sides = [([g.bits or 0.0 for g in side], [float(g.num_bytes) for g in side]) for side in _sides(pairs)]
        return {"bits_per_byte": paired_ratio(sides[0], sides[1], groups)}
    ones = [1.0] * len(pairs)
    marks = [[bool(g.exact) for g in side] for side in _sides(pairs)]
    only_ours = sum(a and not b for a, b in zip(*marks, strict=True))
    only_theirs = sum(b and not a for a, b in zip(*marks, strict=True))
    found["exact"] = paired_ratio(([float(m) for m in marks[0]], ones), ([float(m) for m in marks[1]], ones), groups)
    found["exact"] |= {
        "only_ours": only_ours,
        "only_theirs": only_theirs,
        "p": round(mcnemar(only_ours, only_theirs), 4),
    }
    if all(a.f1 is not None and b.f1 is not None for a, b, _ in pairs):
        f1 = [[g.f1 or 0.0 for g in side] for side in _sides(pairs)]
        found["f1"] = paired_ratio((f1[0], ones), (f1[1], ones), groups)
    if any(g.sought for side in _sides(pairs) for g in side):
        sides = [([2.0 * g.hits for g in s], [float(g.predicted + g.sought) for g in s]) for s in _sides(pairs)]
        found["field_f1"] = paired_ratio(sides[0], sides[1], groups)
    return found


def _sides(pairs: Sequence[tuple[Grade, Grade, str]]) -> tuple[list[Grade], list[Grade]]:
    return [a for a, _, _ in pairs], [b for _, b, _ in pairs]
