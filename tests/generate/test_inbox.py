"""Under load a stream's events hold several tokens, and say the same."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.core.errors import EngineError
from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import FinishReason, SamplingParams, Usage
from smelt.generate.collect import collect
from smelt.generate.completion import Event, PromptText
from smelt.generate.events import (
    AnswerArguments,
    AnswerCall,
    AnswerEnd,
    AnswerText,
    AnswerUsage,
    TokenReport,
    TokenText,
)
from smelt.generate.inbox import Inbox, joined
from smelt.generate.llm import LLM
from tests.generate.fakes import make_llm, random_logits, tiny_tokenizer

CHOICE = st.integers(0, 2)
REPORTS = st.lists(st.builds(lambda i: TokenReport(TokenText(i, "x", b"x", -1.0)), st.integers(0, 9)), max_size=2)
EVENTS: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(
        st.builds(AnswerText, CHOICE, st.text(max_size=3), REPORTS.map(tuple)),
        st.builds(AnswerArguments, CHOICE, st.integers(0, 1), st.text(max_size=3)),
        st.builds(AnswerCall, CHOICE, st.integers(0, 1), st.just("id"), st.just("f")),
        st.builds(PromptText, CHOICE, st.text(max_size=3)),
        st.builds(AnswerEnd, CHOICE, st.just(FinishReason.STOP)),
        st.just(AnswerUsage(Usage(1, 2, 0))),
    ),
    max_size=20,
)


def _told(events: list[Event], choice: int | None) -> list[object]:
    """What a reader of one choice hears, letter by letter and report by report."""
    heard: list[object] = []
    for event in events:
        if getattr(event, "choice", None) != choice:
            continue
        if isinstance(event, AnswerText):
            heard += [("text", letter) for letter in event.text]
        elif isinstance(event, AnswerArguments):
            heard += [("arguments", event.call, letter) for letter in event.text]
        else:
            heard.append(event)
    return heard


def _reports(events: list[Event], choice: int) -> list[TokenReport]:
    return [r for event in events if isinstance(event, AnswerText) and event.choice == choice for r in event.reports]


@given(EVENTS)
def test_joined_events_say_the_same(events: list[Event]) -> None:
    fewer = joined(events)
    for choice in (None, 0, 1, 2):
        assert _told(fewer, choice) == _told(events, choice)
        if choice is not None:
            assert _reports(fewer, choice) == _reports(events, choice)
            own = [event for event in fewer if getattr(event, "choice", None) == choice]
            pairs = zip(own, own[1:], strict=False)
            assert not any(isinstance(a, AnswerText) and isinstance(b, AnswerText) for a, b in pairs), "one can join"
    assert joined(fewer) == fewer


async def test_an_item_comes_at_once_and_what_waits_together() -> None:
    inbox: Inbox[int] = Inbox()
    for i in range(3):
        inbox.put(i)
        assert await asyncio.wait_for(inbox.take(), 5) == [i]
    for i in range(5):
        inbox.put(i)
    assert await asyncio.wait_for(inbox.take(), 5) == [0, 1, 2, 3, 4]


async def test_a_thread_and_a_loop_lose_nothing() -> None:
    inbox: Inbox[int] = Inbox()
    thread = threading.Thread(target=lambda: [inbox.put(i) for i in range(20_000)])
    thread.start()
    found: list[int] = []
    while len(found) < 20_000:
        found += await asyncio.wait_for(inbox.take(), 10)
    thread.join()
    assert found == list(range(20_000))


def test_a_closed_loop_hears_nothing_and_nobody_fails() -> None:
    async def make() -> Inbox[int]:
        return Inbox()

    asyncio.run(make()).put(1)


NEVER_END = dict.fromkeys(tiny_tokenizer().control_ids.values(), -100.0)


async def _wait_idle(llm: LLM) -> None:
    while llm.stats()["num_running"]:
        await asyncio.sleep(0.005)


async def test_who_reads_late_gets_the_same_answer_in_fewer_events() -> None:
    params = SamplingParams(max_tokens=60, seed=4, logit_bias=NEVER_END, top_logprobs=1)
    request = ChatRequest(messages=(Message.of("user", "hi"),), params=params)
    with closing(make_llm()) as llm:
        stream = llm.stream(llm.prepare(request))
        first = await anext(stream)
        await _wait_idle(llm)
        rest = [event async for event in stream]
        assert len(rest) <= 4, "the text, the end, the usage"
        whole = llm.chat(request)
        assert collect([first, *rest]).message == whole.message
        assert sum(len(e.reports) for e in (first, *rest) if isinstance(e, AnswerText)) == 60


async def test_what_was_drawn_before_a_failure_is_shown_before_it() -> None:
    calm = random_logits(tiny_tokenizer().vocab_size)
    num_left = 10

    def logits(history: list[int]) -> np.ndarray:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            raise RuntimeError("no")
        return calm(history)

    params = SamplingParams(max_tokens=60, logit_bias=NEVER_END, top_logprobs=0)
    with closing(make_llm(logits)) as llm:
        stream = llm.stream(llm.prepare(ChatRequest(messages=(Message.of("user", "hi"),), params=params)))
        events = [await anext(stream)]
        await _wait_idle(llm)
        with pytest.raises(EngineError):
            async for event in stream:
                events.append(event)
        assert sum(len(e.reports) for e in events if isinstance(e, AnswerText)) == 10
