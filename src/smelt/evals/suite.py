"""Runs questions against a Sampler, keeps the replies, and counts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from smelt.core.errors import ContextLengthError, InvalidRequestError
from smelt.core.sampler import Sampler
from smelt.evals.cases import Question, Reply, identity
from smelt.evals.grade import Grade
from smelt.evals.passages import Passage, controls
from smelt.evals.stats import clustered, ratio
from smelt.evals.store import Kept, Store, key_of

Q = TypeVar("Q", bound=Question)


@dataclass(frozen=True, slots=True)
class Row:
    """One graded reply; `grade` is None where the model could not be asked, which is not the same as wrong."""

    question: Question
    reply: Reply
    grade: Grade | None
    began: float
    seconds: float


def run(
    sampler: Sampler,
    questions: Sequence[Question],
    *,
    store: Store | None = None,
    workers: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Ask every question that `store` has no reply to, `workers` at a time; rows in the order of the questions.

    `progress` gets the number of rows and how many of them were asked now. A request the model refuses (too long, a
    schema it cannot honour) is kept as refused; any other failure ends the run, and what was answered stays kept.
    """
    kept = store if store is not None else Store()
    fingerprint = sampler.fingerprint

    def answered(question: Question) -> tuple[Kept, bool]:
        key = key_of(fingerprint, question)
        if (found := kept.get(key)) is not None:
            return found, False
        began, start = time.time(), time.perf_counter()
        try:
            reply = question.ask(sampler)
        except (InvalidRequestError, ContextLengthError) as error:
            reply = Reply(refused=f"{type(error).__name__}: {error}"[:300])
        new = Kept.of(reply, began, time.perf_counter() - start)
        kept.put(key, question, new)
        return new, True

    rows: list[Row] = []
    num_asked = 0
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        for question, (one, fresh) in zip(questions, pool.map(answered, questions), strict=True):
            grade = None if one.reply.refused else question.grade(one.reply)
            rows.append(Row(question, one.reply, grade, one.began, one.seconds))
            num_asked += fresh
            if progress is not None:
                progress(len(rows), num_asked)
    finally:
        pool.shutdown(cancel_futures=True)
    return rows


def sample(questions: Iterable[Q], limit: int | None) -> list[Q]:
    """At most `limit` questions, languages in turn; decided by content, so a larger limit contains a smaller one."""
    found = list(questions)
    if limit is None or limit >= len(found):
        return found
    by_language: dict[str, list[Q]] = {}
    for question in found:
        by_language.setdefault(question.language, []).append(question)
    ordered = [sorted(group, key=_digest) for _, group in sorted(by_language.items())]
    longest = max(len(group) for group in ordered)
    return [group[i] for i in range(longest) for group in ordered if i < len(group)][:limit]


def _digest(question: Question) -> bytes:
    return hashlib.sha256(identity(question).encode("utf-8", "surrogatepass")).digest()


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Per suite and language, and over all languages ("all"): every measure that has meaning, with n and interval."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        for language in (row.question.language, "all"):
            groups.setdefault(row.question.suite, {}).setdefault(language, []).append(row)
    return {suite: {lang: _counts(found) for lang, found in by_lang.items()} for suite, by_lang in groups.items()}


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    graded = [(row, row.grade) for row in rows if row.grade is not None]
    found = measures([grade for _, grade in graded], [cluster(row, i) for i, (row, _) in enumerate(graded)])
    chances = [row.question.chance for row, _ in graded]
    if known := [chance for chance in chances if chance is not None]:
        found["chance"] = round(sum(known) / len(known), 4) if len(known) == len(chances) else None
    if texts := [row.question.text for row, _ in graded if isinstance(row.question, Passage)]:
        found["control"] = controls(texts)
    if num_cut := sum(row.reply.finish_reason == "length" for row in rows):
        found["cut"] = num_cut
    if len(graded) < len(rows):
        found["not_asked"] = len(rows) - len(graded)
    found["seconds"] = round(busy_seconds(rows), 2)
    found["tokens"] = [
        sum(row.reply.usage.prompt_tokens for row in rows),
        sum(row.reply.usage.completion_tokens for row in rows),
    ]
    return found


def measures(grades: Sequence[Grade], groups: Sequence[str]) -> dict[str, Any]:
    """Every measure the grades allow; `groups` says which grades move together."""
    found: dict[str, Any] = {}
    for name, field in (("exact", "exact"), ("loose", "loose"), ("tool_choice", "chosen")):
        marked = [(bool(getattr(g, field)), group) for g, group in zip(grades, groups, strict=True) if _has(g, field)]
        if marked or (name == "exact" and not any(_has(g, "bits") for g in grades)):
            found[name] = clustered([mark for mark, _ in marked], [group for _, group in marked])
    if any(_has(g, "f1") for g in grades):
        found["f1"] = ratio([g.f1 or 0.0 for g in grades], [1.0] * len(grades), groups)
    if any(g.sought for g in grades):
        found["field_f1"] = ratio(
            [2.0 * g.hits for g in grades], [float(g.predicted + g.sought) for g in grades], groups
        )
        found["field_recall"] = ratio([float(g.hits) for g in grades], [float(g.sought) for g in grades], groups)
    if any(_has(g, "bits") for g in grades):
        found["bits_per_byte"] = ratio([g.bits or 0.0 for g in grades], [float(g.num_bytes) for g in grades], groups)
        found["bytes"] = sum(g.num_bytes for g in grades)
    return found


def _has(grade: Grade, field: str) -> bool:
    return getattr(grade, field) is not None


def cluster(row: Row, index: int) -> str:
    """The row's group, or one of its own."""
    return row.question.group or f"#{index}"


def busy_seconds(rows: Iterable[Row]) -> float:
    """Seconds in which at least one of the rows was being answered; resumed runs leave no gap in it."""
    busy, until = 0.0, 0.0
    for began, seconds in sorted((row.began, row.seconds) for row in rows):
        ended = began + seconds
        busy += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return busy
