"""Counting: intervals, groups, and questions that could not be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from smelt.core.errors import EngineError, InvalidRequestError
from smelt.core.messages import Message
from smelt.core.sampler import ChatAnswer, ChatRequest
from smelt.core.sampling import FinishReason, Usage
from smelt.evals.cases import Case, Reply
from smelt.evals.grade import Grade
from smelt.evals.store import Store
from smelt.evals.suite import Row, busy_seconds, measures, run, sample, summary


@dataclass
class Echo:
    """Answers with the last message; refuses "refuse"."""

    name: str = "echo"
    fingerprint: str = "1"
    asked: int = 0

    def chat(self, request: ChatRequest) -> ChatAnswer:
        self.asked += 1
        text = request.messages[-1].text
        if text == "refuse":
            raise InvalidRequestError("no")
        return ChatAnswer(message=Message.of("assistant", text), finish_reason=FinishReason.STOP, usage=Usage(1, 1))


def case(text: str, language: str, wanted: str) -> Case:
    request = ChatRequest(messages=(Message.of("user", text),))
    return Case(suite="echo", language=language, grader="phrases", request=request, phrases=(wanted,))


def test_rows_keep_their_order_and_groups_add_up() -> None:
    cases = [case(f"t{i}", "en" if i % 2 else "de", f"t{i}" if i % 4 else "other") for i in range(40)]
    seen: list[tuple[int, int]] = []
    rows = run(Echo(), cases, workers=4, progress=lambda *counts: seen.append(counts))
    assert [row.question for row in rows] == cases
    assert seen == [(i, i) for i in range(1, 41)]
    found = summary(rows)["echo"]
    assert found["en"]["exact"]["value"] == 1.0
    assert found["de"]["exact"]["value"] == 0.5
    assert (found["all"]["exact"]["value"], found["all"]["exact"]["n"]) == (0.75, 40)


def test_what_could_not_be_asked_is_not_wrong() -> None:
    found = summary(run(Echo(), [case("refuse", "en", "x"), case("x", "en", "x")]))["echo"]["all"]
    assert found["exact"]["n"] == 1
    assert found["exact"]["value"] == 1.0
    assert found["not_asked"] == 1


def test_a_larger_limit_contains_the_smaller_one() -> None:
    cases = [case(f"t{i}", language, "x") for i in range(20) for language in ("en", "de", "zh")]
    small, large = sample(cases, 6), sample(cases, 21)
    assert [one.language for one in small].count("zh") == 2
    assert small == large[:6]
    assert sample(list(reversed(cases)), 6) == small
    assert sample(cases, None) == cases


def test_time_without_answers_does_not_count() -> None:
    """A run that was stopped for an hour and went on: the hour is not the model's."""
    reply, question = Reply(), case("t", "en", "t")
    rows = [Row(question, reply, None, began, seconds) for began, seconds in ((0, 2), (1, 2), (3600, 1.5), (3600, 1))]
    assert busy_seconds(rows) == 4.5


def test_other_failures_end_the_run_and_lose_nothing(tmp_path: Path) -> None:
    class Breaks(Echo):
        def chat(self, request: ChatRequest) -> ChatAnswer:
            if request.messages[-1].text == "t5":
                raise EngineError("broken")
            return super().chat(request)

    cases = [case(f"t{i}", "en", "t") for i in range(8)]
    store = Store(tmp_path / "rows.jsonl")
    with pytest.raises(EngineError):
        run(Breaks(), cases, store=store, workers=1)
    store.close()
    echo, store = Echo(), Store(tmp_path / "rows.jsonl")
    num_kept = len(store)
    assert 5 <= num_kept < 8
    rows = run(echo, cases, store=store, workers=1)
    store.close()
    assert len(rows) == 8
    assert echo.asked == 8 - num_kept


def test_measures_by_kind_of_grade() -> None:
    fields = measures(
        [Grade(exact=True, hits=3, predicted=3, sought=3), Grade(exact=False, hits=1, predicted=3, sought=1)],
        ["a", "b"],
    )
    assert fields["field_f1"]["value"] == 0.8
    bits = measures([Grade(bits=20.0, num_bytes=10), Grade(bits=10.0, num_bytes=20)], ["a", "b"])
    assert bits["bits_per_byte"]["value"] == 1.0
    assert set(bits) == {"bits_per_byte", "bytes"}
    spans = measures([Grade(exact=False, f1=0.5), Grade(exact=True, f1=1.0)], ["a", "b"])
    assert (spans["f1"]["value"], spans["exact"]["value"]) == (0.75, 0.5)
