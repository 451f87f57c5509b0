"""Row 38 of reference/safety.md 5.2: what a caller writes cannot write the log."""

from __future__ import annotations

import json
import time
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
    requests = _fields(text)
    replies = [live.chat(**fields) for fields in requests]
    assert {reply.status for reply in replies} <= {200, 400, 404}
    quoted = "".join(f"%{byte:02X}" for byte in text.encode())
    replies.append(live.request("GET", f"/v1/{quoted}", headers={"X-Request-Id": "forged", "User-Agent": "%s\x1b[2J"}))
    records = _records(live, [reply.headers["x-request-id"] for reply in replies])
    assert all(text not in str(list((record | {"path": ""}).values())) for record in records)
    assert {len(record["body"]) for record in records[:-1]} == {16}


def _records(live: Server, request_ids: list[str]) -> list[dict[str, Any]]:
    """The log lines of these requests; a line is written just after its answer."""
    deadline = time.monotonic() + 5
    while True:
        lines = live.log.read_bytes().decode("ascii").splitlines()
        assert all(line.isprintable() for line in lines)
        by_id = {record["request_id"]: record for record in map(json.loads, lines)}
        if all(request_id in by_id for request_id in request_ids):
            assert len(by_id) == len(lines)
            return [by_id[request_id] for request_id in request_ids]
        assert time.monotonic() < deadline
        time.sleep(0.01)
