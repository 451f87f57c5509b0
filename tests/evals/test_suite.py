"""Counting: intervals, groups, and questions that could not be asked."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message
from smelt.core.sampler import ChatAnswer, ChatRequest
from smelt.core.sampling import FinishReason, Usage
from smelt.evals.cases import Case
from smelt.evals.stats import proportion, wilson
from smelt.evals.suite import run, summary


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


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)]
)
def test_wilson_by_published_values(successes: int, total: int, low: float, high: float) -> None:
    found = wilson(successes, total)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_nothing_counted_says_nothing() -> None:
    assert proportion(0, 0) == {"value": 0.0, "n": 0, "interval95": [0.0, 1.0]}
