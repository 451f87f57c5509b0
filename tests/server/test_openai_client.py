"""The official client, unchanged, against a live server: random weights, so shapes and guarantees, not wit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.server.live import NEVER_END, Server, running

MODEL = "gpt-4o-mini"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_folder, tmp_path_factory.mktemp("client"), api_keys="sk-client-test") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.base_url}/v1", api_key="sk-client-test", max_retries=0) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=8, seed=3)
    assert answer.choices[0].message.content is not None
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage and answer.usage.prompt_tokens > 0
    assert answer._request_id and answer._request_id.startswith("req_")
    again = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=8, seed=3)
    assert again.choices == answer.choices


def test_stream_equals_the_whole(client: OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 20, "seed": 5}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage and whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_the_second_time_the_prefix_is_cached(client: OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "cached " * 20}], "max_tokens": 1, "seed": 1}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    assert first.usage and first.usage.prompt_tokens_details and first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage and second.usage.prompt_tokens_details
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > 32


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "weather"}}, "stop")],
    ids=["required", "named"],
)
def test_tools(client: OpenAI, choice: Any, reason: str) -> None:
    """Arguments are valid by construction; a named choice ends in "stop", as OpenAI's does."""
    for seed in range(4):
        answer = client.chat.completions.create(
            model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, seed=seed
        )
        message = answer.choices[0].message
        assert message.content is None
        (call,) = message.tool_calls or ()
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == {"city", "unit"} and arguments["unit"] in ("C", "F")
        assert answer.choices[0].finish_reason == reason


def test_no_tools_when_none_may_be_called(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice="none", max_tokens=10
    )
    assert answer.choices[0].message.tool_calls is None


def test_allowed_tools(client: OpenAI) -> None:
    allowed: Any = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    for seed in range(4):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            tools=[WEATHER, TIME],
            tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
            parallel_tool_calls=False,
            seed=seed,
        )
        call = (answer.choices[0].message.tool_calls or [])[0]
        assert call.type == "function" and call.function.name == "time"


def test_streamed_call_is_the_whole_call(client: OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": HELLO, "tools": [WEATHER], "tool_choice": "required", "seed": 9}
    whole = client.chat.completions.create(**asked, parallel_tool_calls=False)
    arguments, ids = "", set()
    for chunk in client.chat.completions.create(**asked, parallel_tool_calls=False, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            ids |= {delta.id} - {None}
            arguments += (delta.function and delta.function.arguments) or ""
    call = (whole.choices[0].message.tool_calls or [])[0]
    assert call.type == "function" and call.function.arguments == arguments
    assert len(ids) == 1


def test_an_answer_goes_back_as_history(client: OpenAI) -> None:
    """What the client returned is sent back as it is: as an object, and as the dictionary it dumps."""
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    message = answer.choices[0].message
    call_id = (message.tool_calls or [])[0].id
    result: Any = {"role": "tool", "tool_call_id": call_id, "content": "21 C"}
    for sent in (message, message.model_dump()):
        history: Any = [*HELLO, sent, result]
        client.chat.completions.create(model=MODEL, messages=history, tools=[WEATHER], max_tokens=4)


class Order(BaseModel):
    number: str
    size: Literal["S", "M", "L"]
    gift: bool


def test_parse(client: OpenAI) -> None:
    for seed in range(3):
        parsed = client.chat.completions.parse(
            model=MODEL, messages=HELLO, response_format=Order, seed=seed, max_completion_tokens=600
        )
        assert isinstance(parsed.choices[0].message.parsed, Order)


def test_json_mode(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "json"}],
        response_format={"type": "json_object"},
        max_completion_tokens=400,
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_n_and_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, n=3, logprobs=True, top_logprobs=4, max_tokens=5, seed=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        content = (choice.logprobs and choice.logprobs.content) or []
        assert "".join(entry.token for entry in content if entry.bytes) or not choice.message.content
        for entry in content:
            logprobs = [alternative.logprob for alternative in entry.top_logprobs]
            assert len(logprobs) == 4 and logprobs == sorted(logprobs, reverse=True)
            assert entry.logprob <= 0


def test_stop_and_limits(client: OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": HELLO, "seed": 4, "max_tokens": 30, "logit_bias": NEVER_END}
    text = client.chat.completions.create(**asked).choices[0].message.content or ""
    pairs = (text[i : i + 2] for i in range(len(text) // 2, len(text) - 1))
    stop = next(pair for pair in pairs if "\ufffd" not in pair)
    cut = client.chat.completions.create(**asked, stop=stop).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")
    short = client.chat.completions.create(**(asked | {"max_tokens": 2}))
    assert short.usage and short.usage.completion_tokens <= 2


def test_completion_scores_a_prompt(client: OpenAI) -> None:
    """What lm-evaluation-harness asks: echo, logprobs, one token; ids and text agree."""
    asked: Any = {"model": MODEL, "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0}
    (by_text,) = client.completions.create(prompt="The quick brown fox", **asked).choices
    logprobs = by_text.logprobs
    assert by_text.text == "The quick brown fox"
    assert logprobs and logprobs.tokens and logprobs.token_logprobs and logprobs.top_logprobs and logprobs.text_offset
    assert "".join(logprobs.tokens) == by_text.text
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:])
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert by_text.text[offset:].startswith(token)
    for value, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True):
        assert max(top.values()) >= value - 1e-6


def test_completions_of_many_prompts(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "b", "c"], n=2, max_tokens=3, seed=1)
    assert [choice.index for choice in answer.choices] == list(range(6))
    alone = client.completions.create(model=MODEL, prompt="b", n=2, max_tokens=3, seed=1)
    assert [choice.text for choice in alone.choices] == [choice.text for choice in answer.choices[2:4]]


def test_models(client: OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == ["tiny", "gpt-4o-mini", "gpt-4o-mini-2024-07-18"]
    for name in listed:
        assert client.models.retrieve(name).owned_by == "smelt"


def test_errors_become_the_clients_exceptions(client: OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=3)
    assert (bad.value.code, bad.value.param) == ("decimal_above_max_value", "temperature")
    assert bad.value.request_id and bad.value.request_id.startswith("req_")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "~" * 2000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


async def test_closing_a_stream_early_frees_it(server: Server) -> None:
    """The asynchronous client, many streams at once, each left after its first chunk."""
    async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="sk-client-test", max_retries=0) as client:

        async def taste() -> None:
            stream = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=900, stream=True)
            async for _ in stream:
                break
            await stream.close()

        await asyncio.gather(*(taste() for _ in range(10)))
        tasks = [asyncio.create_task(client.chat.completions.create(model=MODEL, messages=HELLO)) for _ in range(5)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(server.wait_idle, 2)
