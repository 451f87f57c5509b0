"""Graders accept what is right however it is spelled, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.core.messages import Message, ToolCall
from smelt.core.sampler import ChatRequest
from smelt.evals.cases import Case
from smelt.evals.graders import equal, grade, leaves, parsed


def said(text: str) -> Message:
    return Message.of("assistant", text)


def called(*calls: tuple[str, str]) -> Message:
    return Message(role="assistant", tool_calls=tuple(ToolCall(id="x", name=n, arguments=a) for n, a in calls))


def case(grader: Any, **fields: Any) -> Case:
    return Case(suite="s", language="en", grader=grader, request=ChatRequest(messages=()), **fields)


@pytest.mark.parametrize(
    ("answer", "exact", "chosen"),
    [
        (called(("f", '{"a": 1.50, "b": "x"}')), True, True),
        (called(("f", '{"b":"x","a":1.5}')), True, True),
        (called(("f", '{"a":1.5,"b":"X"}')), False, True),
        (called(("f", '{"a":1.5}')), False, True),
        (called(("f", "{")), False, True),
        (called(("g", '{"a":1.5,"b":"x"}')), False, False),
        (called(("f", '{"a":1.5,"b":"x"}'), ("f", "{}")), False, False),
        (said("f"), False, False),
    ],
)
def test_call(answer: Message, exact: bool, chosen: bool) -> None:
    found = grade(case("call", answer=called(("f", '{"a":1.50,"b":"x"}'))), answer)
    assert (found.exact, found.chosen) == (exact, chosen)


def test_no_call_needs_words_and_no_call() -> None:
    assert grade(case("no_call"), said("I have no tool for that.")).exact
    assert not grade(case("no_call"), called(("f", "{}"))).exact
    assert not grade(case("no_call"), said(" ")).exact
    assert not grade(case("no_call"), Message(role="assistant")).exact


def test_phrases_must_all_be_there() -> None:
    sought = case("phrases", phrases=("A-12", "cancel"))
    assert grade(sought, said("Please confirm: cancel A-12.")).exact
    assert not grade(sought, said("Please confirm: cancel A-13.")).exact
    assert not grade(sought, called(("cancel", "{}"))).exact


def test_json_counts_leaf_fields() -> None:
    sought = case("json", answer=said('{"a":"x","b":[1,{"c":2}],"d":null}'))
    assert grade(sought, said('{"d":null,"b":[1.0,{"c":2}],"a":"x"}')).exact
    half = grade(sought, said('{"a":"y","b":[1,{"c":2}]}'))
    assert (half.exact, half.hits, half.predicted, half.sought) == (False, 2, 3, 4)
    broken = grade(sought, said('{"a":'))
    assert (broken.exact, broken.hits, broken.predicted) == (False, 0, 0)


@pytest.mark.parametrize(
    ("answer", "exact"),
    [
        (called(("area", '{"base":10,"unit":"Square-Meters"}')), True),
        (called(("area", '{"base":10.0}')), True),
        (called(("area", '{"base":11}')), False),
        (called(("area", '{"base":10,"height":1}')), False),
        (called(("area", '{"unit":"square meters"}')), False),
        (called(("volume", '{"base":10}')), False),
        (said("10"), False),
    ],
)
def test_accepted_values(answer: Message, exact: bool) -> None:
    sought = case("any_of_calls", accepted={"area": {"base": [10], "unit": ["square meters", ""]}})
    assert grade(sought, answer).exact is exact


def test_true_is_not_one() -> None:
    assert equal(1, 1.0)
    assert not equal(True, 1)
    assert not equal([True], [1])
    assert equal({"a": [1]}, {"a": [1.0]})


def test_unreadable_equals_nothing() -> None:
    assert not equal(parsed("{"), parsed("{"))
    assert list(leaves(parsed("{"))) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values)
def test_equal_values_have_equal_leaves(a: Any, b: Any) -> None:
    assert equal(a, a)
    if equal(a, b):
        assert sorted(leaves(a)) == sorted(leaves(b))


def test_a_number_beyond_all_floats_is_wrong_and_no_crash() -> None:
    """A weak model under a grammar writes digits until its room is full."""
    endless = "7" * 400
    assert list(leaves(parsed(f'{{"a": {endless}}}'))) == [(".a", endless)]
