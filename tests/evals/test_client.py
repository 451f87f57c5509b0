"""HTTPSampler speaks OpenAI's form and keeps refusals apart from failures."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import httpx
import pytest

from smelt.core.errors import EngineError, InvalidRequestError
from smelt.core.messages import Message, ResponseFormat, Tool, ToolCall, ToolChoice
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.evals.client import HTTPSampler, request_body

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BODY = {
    "choices": [
        {"message": {"role": "assistant", "content": None, "tool_calls": [CALL]}, "finish_reason": "tool_calls"}
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}


def sampler(status: int = 200, body: Any = BODY, seen: list[dict[str, Any]] | None = None) -> HTTPSampler:
    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append({"url": str(request.url), **json.loads(request.content)})
        return httpx.Response(status, json=body)

    client = httpx.Client(transport=httpx.MockTransport(handle))
    return HTTPSampler("http://127.0.0.1:1/v1/", "m", client=client)


def test_request_and_answer() -> None:
    seen: list[dict[str, Any]] = []
    messages = (
        Message.of("user", "hi"),
        Message(role="assistant", tool_calls=(ToolCall(id="c0", name="f", arguments="{}"),)),
        Message.of("tool", "done", tool_call_id="c0"),
    )
    request = ChatRequest(
        messages=messages,
        tools=(Tool(name="f", description="d"),),
        tool_choice=ToolChoice(mode="required", allowed=("f",)),
        response_format=ResponseFormat(kind="json_schema", name="n", schema={"type": "object"}),
        params=SamplingParams(temperature=0, max_tokens=5, seed=3),
    )
    answer = sampler(seen=seen).chat(request)
    assert answer.message.tool_calls == (ToolCall(id="c1", name="f", arguments="{}"),)
    assert answer.usage.total_tokens == 10
    (sent,) = seen
    assert sent["url"] == "http://127.0.0.1:1/v1/chat/completions"
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert [m["role"] for m in sent["messages"]] == ["user", "assistant", "tool"]
    assert sent["messages"][1]["content"] is None
    assert sent["messages"][2]["tool_call_id"] == "c0"
    assert (sent["max_completion_tokens"], sent["seed"], sent["temperature"]) == (5, 3, 0)
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_tool_choice_forms() -> None:
    request = ChatRequest(messages=(Message.of("user", "hi"),), tools=(Tool(name="f"), Tool(name="g")))
    assert request_body(request, "m")["tool_choice"] == "auto"
    some = dataclasses.replace(request, tool_choice=ToolChoice(mode="auto", allowed=("f", "g")))
    sent = request_body(some, "m")["tool_choice"]
    assert sent["type"] == "allowed_tools"
    assert [tool["function"]["name"] for tool in sent["allowed_tools"]["tools"]] == ["f", "g"]


def test_refusals_and_failures_differ() -> None:
    request = ChatRequest(messages=(Message.of("user", "hi"),))
    with pytest.raises(InvalidRequestError, match="400"):
        sampler(400).chat(request)
    with pytest.raises(EngineError, match="500"):
        sampler(500).chat(request)
    with pytest.raises(EngineError, match="no chat completion"):
        sampler(200, {"choices": []}).chat(request)
