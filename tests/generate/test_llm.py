"""LLM over a scripted or random model: limits, finish reasons, seeds, choices, aborts."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from smelt.core.errors import ContextLengthError, EngineError, InvalidRequestError, OverloadedError
from smelt.core.messages import Message, ResponseFormat, Tool, ToolChoice
from smelt.core.sampler import ChatRequest, Sampler
from smelt.core.sampling import FinishReason, SamplingParams, Usage
from smelt.generate.collect import collect
from smelt.generate.events import AnswerArguments, AnswerCall, AnswerEnd, AnswerText, AnswerUsage
from smelt.generate.llm import LLM
from tests.generate.fakes import make_llm, random_logits, scripted_logits, tiny_tokenizer

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
)
TIME = Tool("get_time", "", {})


def ask(text: str = "hi there", *, system: str = "", **fields: Any) -> ChatRequest:
    """A request; names of SamplingParams and of ChatRequest both work."""
    params = {name: fields.pop(name) for name in SamplingParams.__dataclass_fields__ if name in fields}
    messages = ((Message.of("system", system),) if system else ()) + (Message.of("user", text),)
    return ChatRequest(messages=messages, params=SamplingParams(**{"max_tokens": 60, **params}), **fields)


@pytest.fixture(scope="module")
def noisy() -> Iterator[LLM]:
    llm = make_llm(num_blocks=256)
    yield llm
    llm.close()


def saying(*parts: str, **options: Any) -> LLM:
    """A model that wants to say exactly this; parts in <|...|> are control tokens."""
    tokenizer = tiny_tokenizer()
    ids = [i for part in parts for i in ([tokenizer.control_ids[part]] if "<|" in part else tokenizer.encode(part))]
    return make_llm(scripted_logits(tokenizer, ids), **options)


def test_llm_is_a_sampler(noisy: LLM) -> None:
    sampler: Sampler = noisy
    assert sampler.name == "tiny"


def test_a_text_answer_and_its_usage() -> None:
    llm = saying("Good morning.")
    request = ask(temperature=0.0)
    answer = llm.chat(request)
    prompt = len(llm.renderer.render(request.messages, open_turn=True)) if llm.renderer else 0
    assert answer.message == Message.of("assistant", "Good morning.")
    assert answer.finish_reason is FinishReason.STOP
    assert answer.usage == Usage(prompt, len(llm.tokenizer.encode("Good morning.")), 0)
    assert llm.count(request).total == prompt
    llm.close()


def test_a_repeated_prompt_is_found_in_the_cache(noisy: LLM) -> None:
    request = ask("the same long question, told twice so that some blocks are full of it", seed=3)
    first, second = noisy.chat(request), noisy.chat(request)
    assert first.message == second.message
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, first.usage.prompt_tokens // 16 * 16)


CALL = ("<|call|>", "get_weather", "<|args|>", '{"city":"Paris"}')


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (ToolChoice("auto"), FinishReason.TOOL_CALLS),
        (ToolChoice("required"), FinishReason.TOOL_CALLS),
        (ToolChoice("auto", ("get_weather",)), FinishReason.TOOL_CALLS),
        (ToolChoice("required", ("get_weather",)), FinishReason.STOP),
    ],
)
def test_a_call_and_its_finish_reason(choice: ToolChoice, reason: FinishReason) -> None:
    """OpenAI says "stop" for a named choice and "tool_calls" for every other (reference: api.md)."""
    llm = saying(*CALL)
    answer = llm.chat(ask(tools=(WEATHER, TIME), tool_choice=choice, temperature=0.0))
    (call,) = answer.message.tool_calls
    assert (call.name, call.arguments, answer.finish_reason) == ("get_weather", '{"city":"Paris"}', reason)
    assert answer.message.content == ()
    llm.close()


def test_text_then_two_calls_then_one_when_parallel_calls_are_off() -> None:
    llm = saying("Let me see.", *CALL, *CALL)
    request = ask(tools=(WEATHER,), temperature=0.0)
    both = llm.chat(request).message
    assert (both.text, len(both.tool_calls)) == ("Let me see.", 2)
    assert len({call.id for call in both.tool_calls}) == 2
    one = llm.chat(ask(tools=(WEATHER,), temperature=0.0, parallel_tool_calls=False)).message
    assert (one.text, len(one.tool_calls)) == ("Let me see.", 1)
    llm.close()


def test_no_call_where_no_tool_is_offered() -> None:
    """A model that wants to call cannot: the control token is masked, with tools hidden or absent."""
    llm = saying(*CALL)
    for request in (ask(temperature=0.0), ask(temperature=0.0, tools=(WEATHER,), tool_choice=ToolChoice("none"))):
        assert llm.chat(request).message.tool_calls == ()
    llm.close()


def test_required_calls_from_a_model_that_would_rather_talk(noisy: LLM) -> None:
    for seed in range(5):
        request = ask(tools=(WEATHER, TIME), tool_choice=ToolChoice("required"), seed=seed, max_tokens=200)
        answer = noisy.chat(request)
        for call in answer.message.tool_calls[: -1 if answer.finish_reason is FinishReason.LENGTH else None]:
            assert call.name in ("get_weather", "get_time")
            jsonschema.validate(json.loads(call.arguments), WEATHER.parameters if call.name == "get_weather" else {})
        assert answer.message.tool_calls


def test_a_call_cut_by_the_limit_ends_with_length() -> None:
    """Peers report tool_calls for a call cut by max_tokens and so hide broken JSON (reference: api.md, pain 7)."""
    llm = saying(*CALL)
    answer = llm.chat(ask(tools=(WEATHER,), temperature=0.0, max_tokens=6))
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage.completion_tokens == 6
    llm.close()


def test_an_answer_that_is_whole_at_the_limit_ends_with_stop() -> None:
    llm = saying('{"a":1}')
    form = ResponseFormat("json_schema", "x", {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
    num_tokens = len(llm.tokenizer.encode('{"a":1}'))
    answer = llm.chat(ask(response_format=form, temperature=0.0, max_tokens=num_tokens))
    assert (answer.message.text, answer.finish_reason) == ('{"a":1}', FinishReason.STOP)
    llm.close()


def test_a_stop_string_is_not_shown_and_frees_the_engine() -> None:
    llm = saying("one two three four five six seven eight nine ten")
    answer = llm.chat(ask(stop=("ee fo", "zzz"), temperature=0.0))
    assert (answer.message.text, answer.finish_reason) == ("one two thr", FinishReason.STOP)
    assert 0 < answer.usage.completion_tokens < len(llm.tokenizer.encode("one two three four five "))
    wait_idle(llm)
    llm.close()


def wait_idle(llm: LLM) -> None:
    deadline = time.monotonic() + 5
    while (stats := llm.stats())["num_blocks_used"] or stats["num_running"]:
        assert time.monotonic() < deadline, stats
        time.sleep(0.002)


def test_json_object_is_an_object(noisy: LLM) -> None:
    num_complete = 0
    for seed in range(8):
        answer = noisy.chat(ask(response_format=ResponseFormat("json_object"), seed=seed, max_tokens=300))
        if answer.finish_reason is FinishReason.STOP:
            assert isinstance(json.loads(answer.message.text), dict)
            num_complete += 1
    assert num_complete


def test_tools_with_a_response_format_give_calls_or_json(noisy: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = ResponseFormat("json_schema", "x", schema)
    for bias in (-50.0, 50.0):
        call_id = noisy.tokenizer.control_ids["<|call|>"]
        request = ask(tools=(TIME,), response_format=form, seed=1, max_tokens=400, logit_bias={call_id: bias})
        answer = noisy.chat(request).message
        if bias > 0:
            assert {(call.name, call.arguments) for call in answer.tool_calls} == {("get_time", "{}")}
            assert answer.text == ""
        else:
            assert answer.tool_calls == ()
            jsonschema.validate(json.loads(answer.text), schema)


def test_logprobs_cover_the_text_shown_and_change_nothing(noisy: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["red", "green"]}}, "required": ["a"]}
    form = ResponseFormat("json_schema", "x", schema)
    plain = noisy.chat(ask(response_format=form, seed=4))
    events = list(noisy.events(noisy.prepare(ask(response_format=form, seed=4, top_logprobs=2))))
    assert collect(events).message == plain.message
    reports = [r for event in events if isinstance(event, AnswerText) for r in event.reports]
    assert b"".join(r.token.bytes for r in reports).decode() == plain.message.text
    assert all(len(r.top) == 2 and r.token.logprob <= 0 for r in reports)


# --- limits -----------------------------------------------------------------------------------------------------


def test_openais_words_for_a_prompt_that_is_too_long(noisy: LLM) -> None:
    request = ask("word " * 3000)
    total = noisy.count(request).total
    with pytest.raises(ContextLengthError) as caught:
        noisy.prepare(request)
    assert caught.value.message == (
        f"This model's maximum context length is 1024 tokens. However, your messages resulted in {total} tokens. "
        "Please reduce the length of the messages."
    )
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


def test_openais_words_with_tools(noisy: LLM) -> None:
    request = ask("word " * 3000, tools=(WEATHER,))
    count = noisy.count(request)
    assert count.total == count.messages + count.tools and count.tools > 10
    with pytest.raises(ContextLengthError, match=rf"\({count.messages} in the messages, {count.tools} in the functi"):
        noisy.prepare(request)


def prompt_of(llm: LLM, num_tokens: int) -> ChatRequest:
    """A request whose prompt has exactly so many tokens."""
    text = ""
    while (missing := num_tokens - llm.count(ask(text)).total) > 0:
        text += "\x01" * missing
    request = ask(text, max_tokens=None)
    assert llm.count(request).total == num_tokens
    return request


def test_the_edge_of_the_context(noisy: LLM) -> None:
    assert noisy.prepare(prompt_of(noisy, 1023)).max_new_tokens == 1
    for length in (1024, 1025):
        with pytest.raises(ContextLengthError):
            noisy.prepare(prompt_of(noisy, length))


def test_a_prompt_and_a_limit_that_do_not_fit_together(noisy: LLM) -> None:
    request = ask(max_tokens=1020)
    total = noisy.count(request).total
    with pytest.raises(ContextLengthError) as caught:
        noisy.prepare(request)
    assert f"you requested {total + 1020} tokens ({total} in the messages, 1020 in the completion)" in str(caught.value)
    assert noisy.prepare(ask(max_tokens=1024 - total)).max_new_tokens == 1024 - total


def test_an_output_limit_above_the_models(noisy: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        noisy.prepare(ask(max_tokens=20_000))
    assert caught.value.message == (
        "max_tokens is too large: 20000. This model supports at most 1024 completion tokens, "
        "whereas you provided 20000."
    )
    assert (caught.value.param, caught.value.code) == ("max_tokens", "invalid_value")


def test_without_a_limit_the_answer_may_fill_the_rest(noisy: LLM) -> None:
    request = ask(max_tokens=None)
    assert noisy.prepare(request).max_new_tokens == 1024 - noisy.count(request).total


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_a_bias_on_a_token_that_does_not_exist(noisy: LLM, token_id: int) -> None:
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        noisy.prepare(ask(logit_bias={token_id: 1.0}))


def test_a_base_model_does_not_chat() -> None:
    llm = make_llm()
    llm.renderer = None
    with pytest.raises(InvalidRequestError, match="not a chat model"):
        llm.prepare(ask())
    llm.close()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": (TIME, Tool("f", "", {"type": "strnig"}))}, "tools[1].function.parameters", "function 'f'"),
        ({"tools": (Tool("f", "", {"type": "array"}),)}, "tools[0].function.parameters", "got 'type: \"array\"'"),
        (
            {"tools": (Tool("f", "", {"type": "object", "properties": {"a": {"type": "string"}}}, strict=True),)},
            "tools[0].function.parameters",
            "'additionalProperties' is required to be supplied",
        ),
        (
            {"response_format": ResponseFormat("json_schema", "X", {"type": "array", "uniqueItems": True})},
            "response_format",
            "response_format 'X': Unimplemented keys",
        ),
        (
            {"response_format": ResponseFormat("json_schema", "X", {"type": "object"}, strict=True)},
            "response_format",
            "In context=(), 'additionalProperties'",
        ),
        (
            {"response_format": ResponseFormat("json_schema", "X", {"pattern": "["}), "tools": (TIME,)},
            "response_format",
            "regex parse error",
        ),
    ],
)
def test_schemas_that_cannot_be_honoured(noisy: LLM, fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        noisy.prepare(ask(**fields))
    assert caught.value.param == param
    assert words in caught.value.message


def test_a_tool_that_is_not_strict_may_use_keywords_nobody_honours(noisy: LLM) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "maxItems": 2}}}
    assert noisy.prepare(ask(tools=(Tool("f", "", parameters),))).constraint is not None


# --- seeds and choices ------------------------------------------------------------------------------------------


def texts(llm: LLM, request: ChatRequest, n: int) -> list[str]:
    found = [""] * n
    for event in llm.events(llm.prepare(request), n=n):
        if isinstance(event, AnswerText):
            found[event.choice] += event.text
    return found


def test_a_seed_gives_the_same_answer_whatever_else_is_in_the_batch(noisy: LLM) -> None:
    request = ask(seed=7, max_tokens=30)
    alone = noisy.chat(request).message
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            noisy.chat(ask("something else", seed=None, tools=(WEATHER,), max_tokens=20))

    threads = [threading.Thread(target=disturb) for _ in range(3)]
    for thread in threads:
        thread.start()
    answers = [noisy.chat(request).message for _ in range(5)]
    stop.set()
    for thread in threads:
        thread.join()
    assert all(answer == alone for answer in answers)


def test_choices_differ_and_the_first_is_the_answer_to_n_1(noisy: LLM) -> None:
    three = texts(noisy, ask(seed=9), 3)
    assert len(set(three)) == 3
    assert three[0] == texts(noisy, ask(seed=9), 1)[0]
    assert three == texts(noisy, ask(seed=9), 3)


def test_without_a_seed_answers_differ(noisy: LLM) -> None:
    assert len({noisy.chat(ask(max_tokens=20)).message.text for _ in range(4)}) > 1


def test_choices_share_the_prompt() -> None:
    llm = make_llm()
    prompt = prompt_of(llm, 600)
    events = list(llm.events(llm.prepare(ask(prompt.messages[0].text, max_tokens=3)), n=4))
    usage = events[-1]
    assert isinstance(usage, AnswerUsage)
    assert usage.usage.prompt_tokens == 600
    assert usage.usage.completion_tokens <= 12
    ends = [event for event in events if isinstance(event, AnswerEnd)]
    assert sorted(end.choice for end in ends) == [0, 1, 2, 3]
    runner: Any = llm.runner
    assert runner.num_computed < 600 + 3 * 16 + 20, "the prompt was computed again for a further choice"
    llm.close()


# --- streams ----------------------------------------------------------------------------------------------------


async def test_a_stream_gives_what_chat_gives(noisy: LLM) -> None:
    request = ask(tools=(WEATHER,), tool_choice=ToolChoice("required"), seed=2, max_tokens=200)
    events = [event async for event in noisy.stream(noisy.prepare(request))]
    answer = collect(events)
    whole = noisy.chat(request)
    assert [(c.name, c.arguments) for c in answer.message.tool_calls] == [
        (c.name, c.arguments) for c in whole.message.tool_calls
    ]
    assert isinstance(events[-1], AnswerUsage) and isinstance(events[-2], AnswerEnd)
    starts = [event for event in events if isinstance(event, AnswerCall)]
    assert [start.call for start in starts] == list(range(len(starts)))
    assert all(isinstance(e, AnswerCall | AnswerArguments | AnswerEnd | AnswerUsage) for e in events)


async def test_closing_a_stream_frees_its_blocks_within_a_step() -> None:
    slow = random_logits(tiny_tokenizer().vocab_size)

    def logits(history: list[int]) -> np.ndarray:
        time.sleep(0.005)
        row = slow(history)
        row[list(tiny_tokenizer().control_ids.values())] = -100.0
        return row

    llm = make_llm(logits)
    stream = llm.stream(llm.prepare(ask(max_tokens=900)), n=3)
    async for _ in stream:
        if llm.stats()["num_running"] == 3:
            break
    runner: Any = llm.runner
    num_steps = runner.num_steps
    await stream.aclose()
    await asyncio.to_thread(wait_idle, llm)
    assert runner.num_steps <= num_steps + 2  # the step under way, and at most the one that was being built
    llm.close()


async def test_cancelling_the_reader_of_a_stream_aborts() -> None:
    llm = make_llm(random_logits(tiny_tokenizer().vocab_size, spread=0.1))

    async def read() -> None:
        async for _ in llm.stream(llm.prepare(ask(max_tokens=1000, logit_bias=dict.fromkeys(llm._stop_ids, -100.0)))):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(wait_idle, llm)
    llm.close()


async def test_many_streams_at_once(noisy: LLM) -> None:
    async def one(seed: int) -> str:
        events = [e async for e in noisy.stream(noisy.prepare(ask(f"question {seed % 3}", seed=seed)))]
        return collect(events).message.text

    together = await asyncio.gather(*(one(seed) for seed in range(24)))
    for seed in (0, 7, 23):
        assert together[seed] == await one(seed)
    await asyncio.to_thread(wait_idle, noisy)


async def test_a_full_queue_is_said_before_the_first_event() -> None:
    llm = make_llm(max_running=1, max_waiting=0)
    prepared = llm.prepare(ask(max_tokens=900, logit_bias=dict.fromkeys(llm._stop_ids, -100.0)))
    first = llm.stream(prepared)
    await anext(first)
    with pytest.raises(OverloadedError):
        await anext(llm.stream(prepared))
    await first.aclose()
    llm.close()


def test_a_failing_model_raises_and_the_next_request_works() -> None:
    calm = random_logits(tiny_tokenizer().vocab_size)
    broken = [True]

    def logits(history: list[int]) -> np.ndarray:
        if broken:
            broken.pop()
            raise RuntimeError("no")
        return calm(history)

    llm = make_llm(logits)
    with pytest.raises(EngineError):
        llm.chat(ask())
    assert llm.chat(ask()).usage.prompt_tokens > 0
    llm.close()


def test_after_close_requests_are_refused() -> None:
    llm = make_llm()
    prepared = llm.prepare(ask())
    llm.close()
    llm.close()
    with pytest.raises(EngineError):
        next(llm.events(prepared))
