"""Runs cases against a Sampler and counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from smelt.core.errors import UserError
from smelt.core.messages import Message
from smelt.core.sampler import Sampler
from smelt.evals.cases import Case
from smelt.evals.graders import Grade, grade
from smelt.evals.stats import proportion


@dataclass(frozen=True, slots=True)
class Row:
    """One graded answer; `grade` is None where the model could not be asked, which is not the same as wrong."""

    case: Case
    answer: Message | None
    grade: Grade | None


def run(
    sampler: Sampler, cases: Sequence[Case], *, workers: int = 8, progress: Callable[[int], None] | None = None
) -> list[Row]:
    """Ask every case, `workers` at a time; rows in the order of the cases."""

    def ask(case: Case) -> Row:
        try:
            answer = sampler.chat(case.request).message
        except UserError:
            return Row(case, None, None)
        return Row(case, answer, grade(case, answer))

    rows = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for row in pool.map(ask, cases):
            rows.append(row)
            if progress is not None:
                progress(len(rows))
    return rows


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Per suite and language, and over all languages: exact share, tool choice, field F1, each where it has meaning."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        for language in (row.case.language, "all"):
            groups.setdefault(row.case.suite, {}).setdefault(language, []).append(row)
    return {suite: {lang: _counts(found) for lang, found in by_lang.items()} for suite, by_lang in groups.items()}


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    grades = [row.grade for row in rows if row.grade is not None]
    found: dict[str, Any] = {"exact": proportion(sum(g.exact for g in grades), len(grades))}
    choices = [g.chosen for g in grades if g.chosen is not None]
    if choices:
        found["tool_choice"] = proportion(sum(choices), len(choices))
    if sought := sum(g.sought for g in grades):
        hits, predicted = sum(g.hits for g in grades), sum(g.predicted for g in grades)
        found["field_f1"] = round(2 * hits / (predicted + sought), 4) if predicted + sought else 0.0
        found["field_recall"] = proportion(hits, sought)
    if len(grades) < len(rows):
        found["not_asked"] = len(rows) - len(grades)
    return found
