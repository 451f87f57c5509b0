"""Pairs: only questions both were asked, and signs that say who is better."""

from __future__ import annotations

from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.evals.cases import Case, Reply
from smelt.evals.compare import compare
from smelt.evals.grade import Grade
from smelt.evals.passages import Passage
from smelt.evals.suite import Row
from smelt.evals.table import aligned, differences


def row(index: int, grade: Grade | None) -> Row:
    request = ChatRequest(messages=(Message.of("user", str(index)),))
    question = Case(suite="s", language="en", grader="phrases", request=request)
    return Row(question, Reply(), grade, 0.0, 0.0)


def test_only_what_both_were_asked_counts() -> None:
    ours = [row(i, Grade(exact=i < 6)) for i in range(10)]
    theirs = [row(i, Grade(exact=i < 2) if i < 8 else None) for i in reversed(range(12))]
    found = compare(ours, theirs)["s"]["exact"]
    assert found["n"] == 8
    assert found["value"] == 0.5
    assert (found["only_ours"], found["only_theirs"]) == (4, 0)
    assert found["p"] == 0.125
    assert found["interval95"][0] > 0
    assert "+0.500" in differences({"s": {"exact": found}})


def test_fewer_bits_are_a_negative_difference() -> None:
    def passages(bits: float) -> list[Row]:
        made = [Passage(suite="bpb", language="en", text=f"text {i}") for i in range(20)]
        return [Row(one, Reply(), Grade(bits=bits + i, num_bytes=10), 0.0, 0.0) for i, one in enumerate(made)]

    found = compare(passages(20.0), passages(30.0))["bpb"]["bits_per_byte"]
    assert (found["value"], found["interval95"]) == (-1.0, [-1.0, -1.0])


def test_columns_line_up() -> None:
    shown = aligned("| a | b |\n|---|---|\n| longer | 1 |").splitlines()
    assert shown == ["a       b", "longer  1"]
