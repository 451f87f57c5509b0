"""Rows 16 and 17 of reference/safety.md 5.2: JSON Schemas."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server.live import Reply, Server


def _property(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


def _nested(depth: int) -> bytes:
    return b'{"type":"object","properties":{"a":' * depth + b"{}" + b"}}" * depth


BAD: dict[str, Any] = {
    "misspelt type": _property({"type": "strnig"}),
    "reference cycle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "reference to nothing": _property({"$ref": "#/$defs/missing"}),
    "remote reference": _property({"$ref": "http://127.0.0.1:9/schema.json"}),
    "file reference": _property({"$ref": "file:///etc/passwd"}),
    "a million enum values": _property({"enum": list(range(10**6))}),
    "maxLength 10^9": _property({"type": "string", "minLength": 10**9, "maxLength": 10**9}),
    "maxItems 10^9": _property({"type": "array", "items": {"type": "integer"}, "minItems": 10**9, "maxItems": 10**9}),
    "unclosed class": _property({"type": "string", "pattern": "^+[a"}),
    "look-behind": _property({"type": "string", "pattern": "(?<=x)*"}),
    "pattern of 1 MB": _property({"type": "string", "pattern": "a" * 2**20}),
    "60 000 groups": _property({"type": "string", "pattern": "(" * 60_000 + ")" * 60_000}),
    "10^5 additional properties": {"type": "object", "additionalProperties": {f"p{i}": 1 for i in range(10**5)}},
    "10^5 properties": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(10**5)}},
    "type a number": _property({"type": 5}),
    "properties an array": {"type": "object", "properties": []},
    "nothing valid": _property({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    "depth 10 000": _nested(10_000),
    "depth 60": _nested(60),
}


def _ask(server: Server, schema: Any, kind: str) -> Reply:
    raw = schema if isinstance(schema, bytes) else json.dumps(schema).encode()
    head = b'{"model":"gpt-4o-mini","max_tokens":4,"messages":[{"role":"user","content":"hi"}],'
    if kind == "format":
        return server.post(
            "/v1/chat/completions",
            head + b'"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":' + raw + b"}}}",
        )
    tool = b'"tools":[{"type":"function","function":{"name":"f","parameters":' + raw + b"}}]}"
    return server.post("/v1/chat/completions", head + b'"tool_choice":"required",' + tool)


@pytest.mark.parametrize("kind", ["format", "tool"])
@pytest.mark.parametrize("name", BAD)
def test_refused_within_a_second(live: Server, name: str, kind: str) -> None:
    """Row 16."""
    start = live.cpu_s
    reply = _ask(live, BAD[name], kind)
    assert live.cpu_s - start < 1
    assert reply.status == 400, reply.body
    assert reply.error["type"] == "invalid_request_error"
    assert len(reply.body) < 1000


@pytest.mark.parametrize("kind", ["format", "tool"])
@pytest.mark.parametrize("pattern", ["^(a+)+$", "(a|aa)+b", "((a{1000}){1000}){1000}", "(x+x+)+y"])
def test_a_regex_that_explodes_elsewhere_is_no_problem_here(live: Server, pattern: str, kind: str) -> None:
    """Row 16: derivatives do not backtrack, so these may be honoured; they must only be quick."""
    start = live.cpu_s
    reply = _ask(live, _property({"type": "string", "pattern": pattern}), kind)
    assert reply.status in (200, 400)
    assert live.cpu_s - start < 1


@pytest.mark.parametrize("num_schemas", [150, pytest.param(1_000, marks=pytest.mark.slow)])
def test_many_different_schemas(live: Server, num_schemas: int) -> None:
    """Row 17: the cache of compiled grammars is bounded, in number and so in memory (see `_still_ok`)."""
    schemas = [_property({"type": "string", "enum": [f"value-{num_schemas}-{i}"]}) for i in range(num_schemas)]
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda schema: _ask(live, schema, "format"), schemas))
    assert {reply.status for reply in replies} == {200}
    assert live.metric("smelt_cached_grammars") <= 64
