"""Chat completions: what the model is asked, and the shapes of its answers, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message, ResponseFormat, TextPart, Tool, ToolCall, ToolChoice
from smelt.core.sampling import FinishReason, SamplingParams, Usage
from smelt.generate.events import (
    AnswerArguments,
    AnswerCall,
    AnswerEnd,
    AnswerText,
    AnswerUsage,
    TokenReport,
    TokenText,
)
from tests.server.conftest import Post
from tests.server.fake import FakeLLM

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g", "h")]
FUNCTION = {"name": "f", "description": "F", "strict": True}
CALLED = {"name": "f", "arguments": "{"}
CALLS = (
    AnswerCall(0, 0, "call_a", "f"),
    AnswerArguments(0, 0, '{"x":'),
    AnswerArguments(0, 0, "1}"),
    AnswerCall(0, 1, "call_b", "g"),
    AnswerArguments(0, 1, "{}"),
    AnswerEnd(0, FinishReason.TOOL_CALLS),
    AnswerUsage(Usage(5, 7)),
)


def chunks(reply: Any) -> list[dict[str, Any]]:
    """The stream's JSON events; checks the framing and the end."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_every_field_reaches_the_model(chat: Post, llm: FakeLLM) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    reply = chat(
        messages=[
            {"role": "system", "content": "s"},
            {"role": "developer", "content": [{"type": "text", "text": "d"}], "name": "dev"},
            {"role": "user", "content": [{"type": "text", "text": text} for text in ("u1", "u2")], "name": "ada"},
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": CALLED}]},
            {"role": "tool", "tool_call_id": "c", "content": "42"},
            {"role": "assistant", "content": None, "refusal": "no"},
        ],
        tools=[{"type": "function", "function": FUNCTION | {"parameters": schema}}],
        tool_choice="auto",
        parallel_tool_calls=False,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": 5},
        seed=11,
        stop=["x", "y"],
        max_completion_tokens=12,
        logprobs=True,
        top_logprobs=3,
        n=1,
    )  # fmt: skip
    assert reply.status_code == 200
    (request,) = llm.requests
    assert request.messages == (
        Message.of("system", "s"),
        Message.of("developer", "d", name="dev"),
        Message(role="user", content=(TextPart("u1"), TextPart("u2")), name="ada"),
        Message(role="assistant", tool_calls=(ToolCall("c", "f", "{"),)),
        Message.of("tool", "42", tool_call_id="c"),
        Message.of("assistant", "no"),
    )
    assert request.tools == (Tool("f", "F", schema, True),)
    assert request.parallel_tool_calls is False
    assert request.response_format == ResponseFormat("json_schema", "n", schema, "", True)
    assert request.params == SamplingParams(
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={7: 5},
        seed=11,
        stop=("x", "y"),
        max_tokens=12,
        top_logprobs=3,
    )


def test_defaults_are_openais(chat: Post, llm: FakeLLM) -> None:
    chat()
    (request,) = llm.requests
    assert request.params == SamplingParams()
    assert (request.tool_choice, request.parallel_tool_calls) == (ToolChoice("none"), True)
    assert request.response_format == ResponseFormat()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("auto", ToolChoice("auto")),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "g"}}, ToolChoice("required", ("g",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOLS[2], TOOLS[0]]}},
            ToolChoice("auto", ("h", "f")),
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[1]]}},
            ToolChoice("required", ("g",)),
        ),
    ],
)
def test_every_form_of_tool_choice(choice: Any, expected: ToolChoice, chat: Post, llm: FakeLLM) -> None:
    assert chat(tools=TOOLS, tool_choice=choice).status_code == 200
    assert llm.requests[0].tool_choice == expected


def test_whole_answer(chat: Post) -> None:
    reply = chat()
    body = reply.json()
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert (body["object"], body["model"]) == ("chat.completion", "gpt-4o-mini")  # the name it was asked by
    assert (body["service_tier"], body["system_fingerprint"]) == ("default", "fp_fake")
    assert body["id"].startswith("chatcmpl-")
    assert body["usage"]["total_tokens"] == 11
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert reply.headers["openai-version"] == "2020-10-01"
    assert int(reply.headers["openai-processing-ms"]) >= 0


def test_streamed_answer(chat: Post) -> None:
    parts = chunks(chat(stream=True, stream_options={"include_usage": True}))
    assert [part["choices"][0]["delta"] for part in parts[:-1]] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hello"},
        {"content": " there"},
        {},
    ]
    assert [part["choices"][0]["finish_reason"] for part in parts[:-1]] == [None, None, None, "stop"]
    assert [part["usage"] for part in parts[:-1]] == [None] * 4
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"]["completion_tokens"] == 2
    assert len({(part["id"], part["created"], part["model"], part["object"]) for part in parts}) == 1


def test_without_include_usage_no_chunk_has_usage(chat: Post) -> None:
    parts = chunks(chat(stream=True))
    assert all("usage" not in part for part in parts)
    assert all(part["choices"] for part in parts)


def test_tool_calls_whole(chat: Post, llm: FakeLLM) -> None:
    llm.script = CALLS
    (choice,) = chat(tools=TOOLS).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_tool_calls_streamed(chat: Post, llm: FakeLLM) -> None:
    """Id and name once, then fragments of the arguments; the role with the first call, and no empty text."""
    llm.script = CALLS
    deltas = [part["choices"][0]["delta"] for part in chunks(chat(tools=TOOLS, stream=True))]
    first = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}}
    second = {"index": 1, "id": "call_b", "type": "function", "function": {"name": "g", "arguments": ""}}
    assert deltas == [
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [first]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {"tool_calls": [second]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]


def test_several_choices_interleave(chat: Post, llm: FakeLLM) -> None:
    llm.script = (
        AnswerText(1, "b"),
        AnswerText(0, "a"),
        AnswerEnd(1, FinishReason.LENGTH),
        AnswerText(0, "a"),
        AnswerEnd(0, FinishReason.STOP),
        AnswerUsage(Usage(1, 3)),
    )
    whole = chat(n=2).json()["choices"]
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in whole] == [
        (0, "aa", "stop"),
        (1, "b", "length"),
    ]
    assert llm.n == 2
    first = {}
    for part in chunks(chat(n=2, stream=True)):
        (choice,) = part["choices"]
        first.setdefault(choice["index"], choice["delta"])
    assert {index: delta["role"] for index, delta in first.items()} == {0: "assistant", 1: "assistant"}


def test_logprobs(chat: Post, llm: FakeLLM) -> None:
    """Minus infinity, which JSON has not, is -9999 as OpenAI writes it."""
    token = TokenText(5, "\ufffd", b"\xe4", -0.5)
    other = TokenText(6, "x", b"x", float("-inf"))
    llm.script = (
        AnswerText(0, "\ufffd", (TokenReport(token, (token, other)),)),
        AnswerEnd(0, FinishReason.STOP),
        AnswerUsage(Usage(1, 1)),
    )
    entry = {"token": "\ufffd", "logprob": -0.5, "bytes": [0xE4]}
    alternatives = [entry, {"token": "x", "logprob": -9999.0, "bytes": [120]}]
    expected = {"content": [{**entry, "top_logprobs": alternatives}], "refusal": None}
    assert chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"] == expected
    streamed = [part["choices"][0]["logprobs"] for part in chunks(chat(logprobs=True, top_logprobs=2, stream=True))]
    assert streamed == [None, expected, None]


def test_obfuscation_makes_chunks_one_length(chat: Post) -> None:
    reply = chat(stream=True, stream_options={"include_obfuscation": True})
    lengths = {len(event) + 2 for event in reply.text.split("\n\n")[:-2]}
    assert len(lengths) == 1
    assert "obfuscation" not in chat(stream=True, stream_options={"include_obfuscation": False}).text


def test_an_empty_answer_is_an_empty_string(chat: Post, llm: FakeLLM) -> None:
    llm.script = (AnswerEnd(0, FinishReason.STOP), AnswerUsage(Usage(1, 0)))
    assert chat().json()["choices"][0]["message"]["content"] == ""
    assert len(chunks(chat(stream=True))) == 2


def test_max_tokens_error_names_the_field_that_was_used(chat: Post, llm: FakeLLM) -> None:
    llm.fail = InvalidRequestError("max_tokens is too large: 9.", param="max_tokens", code="invalid_value")
    assert chat(max_completion_tokens=9).json()["error"]["param"] == "max_completion_tokens"
    assert chat(max_tokens=9).json()["error"]["param"] == "max_tokens"


def test_an_answer_without_an_end_is_our_failure(chat: Post, llm: FakeLLM) -> None:
    llm.script = (AnswerText(0, "x"), AnswerUsage(Usage(1, 1)))
    assert chat().status_code == 500
