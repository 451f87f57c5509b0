"""Row 38 of reference/safety.md 5.2: what a caller writes cannot write the log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.live import Server

PAYLOADS = [
    "a\nforged line",
    "a\r\nforged",
    "\x1b[31mred\x1b[0m",
    "%s%n%d{0}",
    "${jndi:ldap://127.0.0.1/x}",
    "\u2028\x85\x00",
]


def _fields(text: str) -> list[dict[str, Any]]:
    user = {"role": "user", "content": text}
    return [
        {"messages": [user]},
        {"messages": [user | {"name": text}]},
        {"model": text},
        {"user": text},
        {"stop": text},
        {text: text},
        {"tools": [{"type": "function", "function": {"name": text}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": text}}]},
        {"logit_bias": {text: 1}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": text}}}},
        {"safety_identifier": text, "prompt_cache_key": text},
    ]


@pytest.mark.parametrize("text", PAYLOADS, ids=ascii)
def test_one_escaped_line_per_request(live: Server, text: str) -> None:
    """Each line is JSON and ASCII; no content is in it, only a hash."""
    before = len(live.log.read_bytes())
    requests = _fields(text)
    for fields in requests:
        assert live.chat(**fields).status in (200, 400, 404)
    quoted = "".join(c if c.isalnum() else f"%{byte:02X}" for c in text for byte in c.encode())
    live.request("GET", f"/v1/{quoted}")
    live.request("GET", "/v1/models", headers={"X-Request-Id": "forged", "User-Agent": text.split("\n")[0][:1] + "%s"})
    lines = live.log.read_bytes()[before:].decode("ascii").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == len(requests) + 2
    assert all(line.isprintable() for line in lines)
    assert "forged" not in "".join(str(record) for record in records[: len(requests)])
    assert {len(record["body"]) for record in records[: len(requests)]} == {16}
    assert len({record["request_id"] for record in records}) == len(records)
