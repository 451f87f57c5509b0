"""Text assembled token by token equals what a twin says that sees the whole answer at once."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.chat.renderer import ArgumentsDelta, CallStart, ReplyEvent, TextDelta
from smelt.core.sampling import FinishReason
from smelt.generate.events import AnswerArguments, AnswerCall, AnswerEvent, AnswerText, TokenReport, TokenText
from smelt.generate.text import ChoiceText, StopStrings, new_call_id


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The slow twin: read character by character; the first stop string to become complete ends the text."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


class ScriptReader:
    """Token i reads as events[i]."""

    def __init__(self, events: Sequence[Sequence[ReplyEvent]], last: Sequence[ReplyEvent] = ()) -> None:
        self._events, self._last = events, last

    def feed(self, token_id: int) -> Sequence[ReplyEvent]:
        return self._events[token_id]

    def finish(self) -> Sequence[ReplyEvent]:
        return self._last


def report(token_id: int) -> TokenReport:
    return TokenReport(TokenText(token_id, str(token_id), b"", -1.0))


def shown(events: Sequence[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, AnswerText))


def reported(events: Sequence[AnswerEvent]) -> list[int]:
    return [r.token.token_id for event in events if isinstance(event, AnswerText) for r in event.reports]


pieces = st.lists(st.text("ab", max_size=3), max_size=12)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


@given(pieces, stop_lists)
def test_stop_strings_cut_where_the_twin_cuts_whatever_the_pieces(chunks: list[str], stops: list[str]) -> None:
    holder, seen, found = StopStrings(stops), "", False
    for chunk in chunks:
        text, found = holder.feed(chunk)
        seen += text
        if found:
            break
    if not found:
        seen += holder.flush()
    assert (seen, found) == cut("".join(chunks), stops)


@given(pieces, stop_lists)
def test_text_is_held_back_only_while_it_may_become_a_stop_string(chunks: list[str], stops: list[str]) -> None:
    holder, fed, seen = StopStrings(stops), "", ""
    for chunk in chunks:
        text, found = holder.feed(chunk)
        fed, seen = fed + chunk, seen + text
        if found:
            break
        held = fed[len(seen) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@given(pieces, stop_lists)
def test_reports_are_those_of_the_tokens_that_show_a_character(chunks: list[str], stops: list[str]) -> None:
    text = ChoiceText(0, ScriptReader([(TextDelta(c),) if c else () for c in chunks]), stops=stops)
    events: list[AnswerEvent] = []
    for token_id in range(len(chunks)):
        events += text.feed(token_id, report(token_id))
        assert len(reported(events)) >= len(shown(events)) / 3  # never text without the report of its token
        if text.stopped:
            break
    events += text.finish(FinishReason.LENGTH)[0]
    whole, found = cut("".join(chunks), stops)
    assert shown(events) == whole
    starts = [len("".join(chunks[:i])) for i in range(len(chunks))]
    assert reported(events) == [i for i, start in enumerate(starts) if not found or start < len(whole)]


def test_a_stop_string_split_over_three_tokens_is_not_shown() -> None:
    text = ChoiceText(0, ScriptReader([[TextDelta(t)] for t in ("one\nHu", "man", ": two")]), stops=("\nHuman:",))
    first, second, third = text.feed(0), text.feed(1), text.feed(2)
    assert (shown(first), shown(second), shown(third)) == ("one", "", "")
    assert text.stopped
    assert text.finish(FinishReason.LENGTH) == ([], FinishReason.STOP)


def test_tokens_of_one_character_are_reported_with_it() -> None:
    text = ChoiceText(0, ScriptReader([(), (), (TextDelta("界"),), (TextDelta("!"),)]))
    assert text.feed(0, report(0)) == []
    assert text.feed(1, report(1)) == []
    assert reported(text.feed(2, report(2))) == [0, 1, 2]
    assert reported(text.feed(3, report(3))) == [3]


def test_an_unfinished_character_is_shown_and_reported_at_the_end() -> None:
    text = ChoiceText(0, ScriptReader([()], last=(TextDelta("\ufffd"),)))
    assert text.feed(0, report(0)) == []
    events, reason = text.finish(FinishReason.STOP)
    assert (shown(events), reported(events), reason) == ("\ufffd", [0], FinishReason.STOP)


CALL: list[list[ReplyEvent]] = [
    [TextDelta("Let me ")],
    [],  # the control token that opens a call
    [],  # a part of the name
    [CallStart("f")],
    [ArgumentsDelta('{"a')],
    [],  # half a character of an argument
    [ArgumentsDelta('é"}')],
]


def test_a_call_shows_held_text_first_and_none_of_its_tokens_is_reported() -> None:
    text = ChoiceText(2, ScriptReader(CALL), stops=("me !",), hidden_ids=(1,), new_id=lambda: "call_x")
    events = [event for i in range(7) for event in text.feed(i, report(i))]
    last, reason = text.finish(FinishReason.STOP)
    assert events + last == [
        AnswerText(2, "Let ", (report(0),)),
        AnswerText(2, "me ", ()),
        AnswerCall(2, 0, "call_x", "f"),
        AnswerArguments(2, 0, '{"a'),
        AnswerArguments(2, 0, 'é"}'),
    ]
    assert reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("reason", "named", "expected"),
    [
        (FinishReason.STOP, False, FinishReason.TOOL_CALLS),
        (FinishReason.STOP, True, FinishReason.STOP),
        (FinishReason.LENGTH, False, FinishReason.LENGTH),
        (FinishReason.LENGTH, True, FinishReason.LENGTH),
    ],
)
def test_finish_reason_after_a_call(reason: FinishReason, named: bool, expected: FinishReason) -> None:
    text = ChoiceText(0, ScriptReader([[CallStart("f"), ArgumentsDelta("{}")]]))
    text.feed(0)
    assert text.finish(reason, calls_end_with_stop=named)[1] is expected


def test_stop_strings_do_not_apply_to_arguments() -> None:
    text = ChoiceText(0, ScriptReader([[CallStart("f")], [ArgumentsDelta('{"a":"STOP"}')]]), stops=("STOP",))
    events = text.feed(0) + text.feed(1)
    assert not text.stopped
    assert events[-1] == AnswerArguments(0, 0, '{"a":"STOP"}')


def test_call_ids_have_openais_shape_and_differ() -> None:
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"call_[A-Za-z0-9]{24}", call_id) for call_id in ids)
