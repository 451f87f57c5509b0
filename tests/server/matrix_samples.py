"""For each field of the matrix a request that uses it: fields laid over the smallest request of its endpoint."""

from __future__ import annotations

from typing import Any

_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "description": "d", "schema": _SCHEMA, "strict": True}}
_FUNCTION = {"name": "f", "description": "d", "parameters": _SCHEMA, "strict": True}
_TOOLS = [{"type": "function", "function": _FUNCTION}]
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_USER = {"role": "user", "content": "json"}
_TEXT = {"type": "text", "text": "x"}
_NAMED = {"type": "function", "function": {"name": "f"}}
_ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [_NAMED]}}


def _parts(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def _assistant(**fields: Any) -> dict[str, Any]:
    return {"messages": [_USER, {"role": "assistant", "content": "x"} | fields, _USER]}


def _history(call: dict[str, Any]) -> dict[str, Any]:
    result = {"role": "tool", "tool_call_id": "c", "content": "1"}
    return {"messages": [_USER, {"role": "assistant", "tool_calls": [call]}, result]}


_HISTORY = _history(_CALL)
_STREAM = {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}}
_SHARED: dict[str, dict[str, Any]] = {
    "model": {"model": "gpt-4o-mini"},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "n": {"n": 2},
    "seed": {"seed": 1},
    "stop": {"stop": ["x"]},
    "max_tokens": {"max_tokens": 2},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "presence_penalty": {"presence_penalty": 0.5},
    "logit_bias": {"logit_bias": {"5": 1}},
    "stream": {"stream": True},
    "stream_options": _STREAM,
    "stream_options.include_usage": _STREAM,
    "stream_options.include_obfuscation": _STREAM,
    "user": {"user": "u"},
}

CHAT_SAMPLES: dict[str, dict[str, Any]] = {
    **_SHARED,
    "messages": {"messages": [_USER]},
    "messages[].role": {"messages": [{"role": "developer", "content": "x"}, _USER]},
    "messages[].content": {"messages": [_USER]},
    "messages[].content[].type": _parts(_TEXT),
    "messages[].content[].text": _parts(_TEXT),
    "messages[].content[].refusal": _assistant(content=[{"type": "refusal", "refusal": "no"}]),
    "messages[].content[].image_url": _parts({"type": "text", "text": "x", "image_url": {"url": "data:,"}}),
    "messages[].content[].input_audio": _parts(
        {"type": "text", "text": "x", "input_audio": {"data": "", "format": "wav"}}
    ),
    "messages[].content[].file": _parts({"type": "text", "text": "x", "file": {"file_id": "f"}}),
    "messages[].content[].prompt_cache_breakpoint": _parts(_TEXT | {"prompt_cache_breakpoint": {"mode": "explicit"}}),
    "messages[].name": {"messages": [_USER | {"name": "ada"}]},
    "messages[].refusal": _assistant(content=None, refusal="no"),
    "messages[].annotations": _assistant(annotations=[]),
    "messages[].audio": _assistant(audio={"id": "a"}),
    "messages[].tool_calls": _HISTORY,
    "messages[].tool_calls[].id": _HISTORY,
    "messages[].tool_calls[].type": _HISTORY,
    "messages[].tool_calls[].function": _HISTORY,
    "messages[].tool_calls[].function.name": _HISTORY,
    "messages[].tool_calls[].function.arguments": _HISTORY,
    "messages[].tool_calls[].custom": _history(_CALL | {"custom": {"name": "f", "input": ""}}),
    "messages[].function_call": _assistant(function_call={"name": "f", "arguments": "{}"}),
    "messages[].tool_call_id": _HISTORY,
    "max_completion_tokens": {"max_completion_tokens": 2},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "response_format": {"response_format": {"type": "text"}},
    "response_format.type": {"response_format": {"type": "json_object"}, "messages": [_USER]},
    "response_format.json_schema": {"response_format": _FORMAT},
    "response_format.json_schema.name": {"response_format": _FORMAT},
    "response_format.json_schema.description": {"response_format": _FORMAT},
    "response_format.json_schema.schema": {"response_format": _FORMAT},
    "response_format.json_schema.strict": {"response_format": _FORMAT},
    "tools": {"tools": _TOOLS},
    "tools[].type": {"tools": _TOOLS},
    "tools[].function": {"tools": _TOOLS},
    "tools[].function.name": {"tools": _TOOLS},
    "tools[].function.description": {"tools": _TOOLS},
    "tools[].function.parameters": {"tools": _TOOLS},
    "tools[].function.strict": {"tools": _TOOLS},
    "tools[].custom": {"tools": [_TOOLS[0] | {"custom": {"name": "f"}}]},
    "tool_choice": {"tools": _TOOLS, "tool_choice": "required"},
    "tool_choice.type": {"tools": _TOOLS, "tool_choice": _NAMED},
    "tool_choice.function": {"tools": _TOOLS, "tool_choice": _NAMED},
    "tool_choice.function.name": {"tools": _TOOLS, "tool_choice": _NAMED},
    "tool_choice.allowed_tools": {"tools": _TOOLS, "tool_choice": _ALLOWED},
    "tool_choice.allowed_tools.mode": {"tools": _TOOLS, "tool_choice": _ALLOWED},
    "tool_choice.allowed_tools.tools": {"tools": _TOOLS, "tool_choice": _ALLOWED},
    "tool_choice.custom": {"tools": _TOOLS, "tool_choice": _NAMED | {"custom": {"name": "f"}}},
    "parallel_tool_calls": {"tools": _TOOLS, "parallel_tool_calls": False},
    "functions": {"functions": [{"name": "f"}]},
    "function_call": {"function_call": "auto"},
    "store": {"store": True},
    "metadata": {"store": True, "metadata": {"a": "b"}},
    "service_tier": {"service_tier": "default"},
    "modalities": {"modalities": ["text"]},
    "safety_identifier": {"safety_identifier": "s"},
    "prompt_cache_key": {"prompt_cache_key": "k"},
    "prompt_cache_retention": {"prompt_cache_retention": "in_memory"},
    "prompt_cache_options": {"prompt_cache_options": {"mode": "implicit"}},
    "prompt_cache_options.mode": {"prompt_cache_options": {"mode": "implicit"}},
    "prompt_cache_options.ttl": {"prompt_cache_options": {"ttl": "30m"}},
    "reasoning_effort": {"reasoning_effort": "none"},
    "verbosity": {"verbosity": "medium"},
    "audio": {"audio": {"voice": "alloy", "format": "wav"}},
    "prediction": {"prediction": {"type": "content", "content": "x"}},
    "moderation": {"moderation": {"model": "omni-moderation-latest"}},
    "web_search_options": {"web_search_options": {}},
}

COMPLETION_SAMPLES: dict[str, dict[str, Any]] = {
    **_SHARED,
    "prompt": {"prompt": ["a", "b"]},
    "logprobs": {"logprobs": 2},
    "echo": {"echo": True, "max_tokens": 0},
    "best_of": {"best_of": 1},
    "suffix": {"suffix": "x"},
}

# Values that are refused where the field itself is not.
REFUSED_VALUES: list[tuple[str, str, dict[str, Any]]] = [
    ("chat", "messages[0].role", {"messages": [{"role": "function", "name": "f", "content": "x"}]}),
    ("chat", "messages[0].content[0].type", _parts({"type": "image_url", "image_url": {"url": "data:,"}})),
    (
        "chat",
        "messages[0].content[0].type",
        _parts({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
    ),
    ("chat", "messages[0].content[0].type", _parts({"type": "file", "file": {"file_id": "f"}})),
    ("chat", "messages[1].annotations", _assistant(annotations=[{"type": "url_citation"}])),
    ("chat", "messages[1].tool_calls[0].type", _assistant(tool_calls=[{"id": "c", "type": "custom"}])),
    ("chat", "tools[0].type", {"tools": [{"type": "custom"}]}),
    ("chat", "tool_choice.type", {"tools": _TOOLS, "tool_choice": {"type": "custom"}}),
    *(("chat", "service_tier", {"service_tier": tier}) for tier in ("flex", "scale", "priority", "fast")),
    ("chat", "modalities", {"modalities": ["text", "audio"]}),
    ("chat", "prompt_cache_retention", {"prompt_cache_retention": "24h"}),
    ("chat", "prompt_cache_options.mode", {"prompt_cache_options": {"mode": "explicit"}}),
    *(
        ("chat", "reasoning_effort", {"reasoning_effort": e})
        for e in ("minimal", "low", "medium", "high", "xhigh", "max")
    ),
    *(("chat", "verbosity", {"verbosity": verbosity}) for verbosity in ("low", "high")),
    ("completions", "best_of", {"best_of": 3}),
]
