"""Each kind of bad value gets OpenAI's words, its parameter and its code (reference/api.md section 2)."""

from __future__ import annotations

from typing import Any

import pytest

from smelt.core.errors import ContextLengthError, EngineError, OverloadedError
from tests.server.conftest import Post
from tests.server.fake import FakeLLM

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def _function(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | fields}]}


CASES: dict[str, tuple[dict[str, Any], str, str | None, str | None]] = {
    "unknown": ({"foo": 1}, "Unknown parameter: 'foo'.", "foo", "unknown_parameter"),
    "unknown, nested": (
        {"messages": [USER | {"foo": 1}]},
        "Unknown parameter: 'messages[0].foo'.",
        "messages[0].foo",
        "unknown_parameter",
    ),
    "unknown, in a part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "foo": 1}]}]},
        "Unknown parameter: 'messages[0].content[0].foo'.",
        "messages[0].content[0].foo",
        "unknown_parameter",
    ),
    "missing": (
        {"messages": [{"role": "user"}]},
        "Missing required parameter: 'messages[0].content'.",
        "messages[0].content",
        "missing_required_parameter",
    ),
    "missing discriminator": (
        {"messages": [{"content": "x"}]},
        "Missing required parameter: 'messages[0].role'.",
        "messages[0].role",
        "missing_required_parameter",
    ),
    "missing in a union": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {}}},
        "Missing required parameter: 'tool_choice.function.name'.",
        "tool_choice.function.name",
        "missing_required_parameter",
    ),
    "empty array": (
        {"messages": []},
        "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        "messages",
        "empty_array",
    ),
    "long array": (
        {"stop": ["x"] * 5},
        "Invalid 'stop': array too long. Expected an array with maximum length 4, "
        "but got an array with length 5 instead.",
        "stop",
        "array_above_max_length",
    ),
    "decimal above": (
        {"temperature": 200},
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 200 instead.",
        "temperature",
        "decimal_above_max_value",
    ),
    "decimal below": (
        {"top_p": -0.5},
        "Invalid 'top_p': decimal below minimum value. Expected a value >= 0, but got -0.5 instead.",
        "top_p",
        "decimal_below_min_value",
    ),
    "integer above": (
        {"n": 129},
        "Invalid 'n': integer above maximum value. Expected a value <= 128, but got 129 instead.",
        "n",
        "integer_above_max_value",
    ),
    "integer below": (
        {"max_tokens": 0},
        "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        "max_tokens",
        "integer_below_min_value",
    ),
    "long string": (
        _function(description="x" * (2**20 + 1)),
        "Invalid 'tools[0].function.description': string too long. Expected a string with maximum length 1048576, "
        "but got a string with length 1048577 instead.",
        "tools[0].function.description",
        "string_above_max_length",
    ),
    "pattern": (
        _function(name="../x"),
        "Invalid 'tools[0].function.name': string does not match pattern. "
        "Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.",
        "tools[0].function.name",
        "invalid_value",
    ),
    "enum": (
        {"messages": [{"role": "boss", "content": "x"}]},
        "Invalid value: 'boss'. Supported values are: 'system', 'developer', 'user', 'assistant', and 'tool'.",
        "messages[0].role",
        "invalid_value",
    ),
    "type": (
        {"max_tokens": "10"},
        "Invalid type for 'max_tokens': expected an integer, but got a string instead.",
        "max_tokens",
        "invalid_type",
    ),
    "boolean is no number": (
        {"n": True},
        "Invalid type for 'n': expected an integer, but got a boolean instead.",
        "n",
        "invalid_type",
    ),
    "null content": (
        {"messages": [{"role": "user", "content": None}]},
        "Invalid value for 'content': expected a string, got null.",
        "messages[0].content",
        "invalid_type",
    ),
    "union type": (
        {"stop": 5},
        "Invalid type for 'stop': expected a string or an array of strings, but got an integer instead.",
        "stop",
        "invalid_type",
    ),
    "bias key": (
        {"logit_bias": {"x": 1}},
        "Invalid key in 'logit_bias': x. You should only be submitting token IDs.",
        "logit_bias",
        "invalid_value",
    ),
    "unsupported field": (
        {"functions": [{"name": "f"}]},
        "Unsupported parameter: 'functions' is not supported with this model. Use 'tools' instead.",
        "functions",
        "unsupported_parameter",
    ),
    "unsupported value": (
        {"service_tier": "flex"},
        "Unsupported value: 'service_tier' does not support \"flex\" with this model. "
        'Supported values are: "auto", "default".',
        "service_tier",
        "unsupported_value",
    ),
    "json mode without the word": (
        {"response_format": {"type": "json_object"}},
        "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
        "messages",
        None,
    ),
    "top_logprobs alone": (
        {"top_logprobs": 2},
        "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
        "top_logprobs",
        None,
    ),
    "stream_options alone": (
        {"stream_options": {"include_usage": True}},
        "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        "stream_options",
        None,
    ),
    "tool_choice alone": (
        {"tool_choice": "required"},
        "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
        "tool_choice",
        None,
    ),
    "tool_choice of no tool": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "Tool choice 'g' not found in 'tools' parameter.",
        "tool_choice",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_words_parameter_and_code(name: str, chat: Post) -> None:
    fields, message, param, code = CASES[name]
    reply = chat(**fields)
    assert reply.status_code == 400
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    assert reply.json() == {"error": error}


def test_missing_model(client: Any) -> None:
    reply = client.post("/v1/chat/completions", json={"messages": [USER]})
    assert reply.json()["error"]["message"] == "Missing required parameter: 'model'."


def test_unknown_model_is_404(chat: Post) -> None:
    reply = chat(model="gpt-9\n\x1b[31m" + "x" * 10_000)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (404, "model_not_found", None)
    assert error["message"].startswith("The model `gpt-9\\u000a\\u001b[31mxx")
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    ("failure", "status", "kind", "code"),
    [
        (ContextLengthError("too long"), 400, "invalid_request_error", "context_length_exceeded"),
        (OverloadedError("full"), 429, "requests", "rate_limit_exceeded"),
        (EngineError("/srv/models/x broke"), 500, "server_error", "engine_error"),
        (ZeroDivisionError("secret"), 500, "server_error", "internal_error"),
    ],
)
def test_failures_below_keep_their_kind_and_their_secrets(
    failure: Exception, status: int, kind: str, code: str, chat: Post, llm: FakeLLM
) -> None:
    llm.fail = failure
    reply = chat()
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (status, kind, code)
    assert "srv" not in reply.text and "secret" not in reply.text
    assert reply.headers["x-request-id"].startswith("req_")
    if status == 429:
        assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "//v1/models", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/openapi.json", 404, "unknown_url"),
        ("PUT", "/v1/chat/completions", 405, "method_not_supported"),
        ("PUT", "/v1/models/fake", 405, "method_not_supported"),
    ],
)
def test_routes_that_are_not_there(method: str, path: str, status: int, code: str, client: Any) -> None:
    reply = client.request(method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
