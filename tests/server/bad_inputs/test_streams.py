"""Row 30 of reference/safety.md 5.2: clients that leave, stall or crowd; and what text may do to the framing."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

import pytest

from tests.server.bad_inputs.conftest import KEY
from tests.server.conftest import CHAT
from tests.server.live import NEVER_END, Server, read_reply

LONG: dict[str, Any] = CHAT | {"max_tokens": 900, "logit_bias": NEVER_END}
LONG_STRING = {"type": "object", "properties": {"a": {"type": "string", "minLength": 500}}, "required": ["a"]}
JSON_MODE = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": LONG_STRING}}}


def _open(server: Server, path: str, body: dict[str, Any], *, key: str = "none") -> socket.socket:
    """Send a request and do not read."""
    raw = json.dumps(body).encode()
    connection = server.connect()
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        + raw
    )
    return connection


def _wait_running(server: Server, at_least: int = 1) -> None:
    deadline = time.monotonic() + 10
    while server.metric("smelt_requests_running") < at_least:
        assert time.monotonic() < deadline, "the request never started"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", {"n": 4}),
        ("/v1/chat/completions", JSON_MODE),
        ("/v1/completions", {"prompt": "Once", "messages": None}),
        ("/v1/completions", {"prompt": ["Once", "Twice", "Thrice"], "messages": None}),
    ],
    ids=["chat", "chat n=4", "chat json", "completion", "completions"],
)  # fmt: skip
def test_leaving_while_tokens_are_drawn(live: Server, path: str, fields: dict[str, Any], stream: bool) -> None:
    """The blocks are free within one step of the engine, not at the end of the answer."""
    body = {name: value for name, value in (LONG | fields | {"stream": stream}).items() if value is not None}
    connection = _open(live, path, body)
    _wait_running(live)
    connection.close()
    live.wait_idle(within_s=1.0)


def test_leaving_before_the_first_token(live: Server, stream: bool) -> None:
    """Right after sending: the request may be in parsing, preparing or queued."""
    for _ in range(10):
        _open(live, "/v1/chat/completions", LONG | {"stream": stream}).close()
    live.wait_idle(within_s=1.5)


def test_leaving_during_prefill(live: Server, stream: bool) -> None:
    body = LONG | {"messages": [{"role": "user", "content": "word " * 180}], "stream": stream, "max_tokens": 20}
    connections = [_open(live, "/v1/chat/completions", body) for _ in range(4)]
    for connection in connections:
        connection.close()
    live.wait_idle(within_s=1.5)


def test_reset_in_the_middle_of_a_stream(live: Server) -> None:
    connection = _open(live, "/v1/chat/completions", LONG | {"stream": True})
    connection.recv(100)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()
    live.wait_idle(within_s=1.0)


def test_a_client_that_never_reads(live: Server) -> None:
    """The answer waits for it in the socket's buffers or is cut off by the send clock; nothing stays."""
    connection = _open(live, "/v1/chat/completions", LONG | {"stream": True, "logprobs": True, "top_logprobs": 20})
    try:
        live.wait_idle(within_s=20)
    finally:
        connection.close()


def test_a_client_that_reads_a_byte_at_a_time(live: Server) -> None:
    connection = _open(live, "/v1/chat/completions", CHAT | {"max_tokens": 4, "stream": True})
    data = b""
    with connection:
        while not data.endswith(b"0\r\n\r\n"):
            data += connection.recv(1)
            assert len(data) < 10_000
    assert b"data: [DONE]" in data


def test_a_crowd(keyed: Server) -> None:
    """Row 30: bounded by max_requests (8 here); the rest are told to come back, and nobody waits for ever."""
    body = LONG | {"stream": True, "max_tokens": 900}
    crowd = [_open(keyed, "/v1/chat/completions", body, key=KEY) for _ in range(8)]
    try:
        deadline = time.monotonic() + 10
        while keyed.metric("smelt_requests_admitted") < 8:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        late = [_open(keyed, "/v1/chat/completions", body, key=KEY) for _ in range(100)]
        replies = [read_reply(connection) for connection in late]
        for connection in late:
            connection.close()
    finally:
        for connection in crowd:
            connection.close()
    refused = [reply for reply in replies if reply.status == 429]
    assert len(refused) >= 90  # a few of the first eight may have ended by then
    assert refused[0].error["code"] == "rate_limit_exceeded"
    assert refused[0].headers["retry-after"] == "1"
    keyed.wait_idle(within_s=2)


@pytest.mark.slow
def test_a_thousand_open_streams(live: Server) -> None:
    """Row 30: each ends as a stream or as a refusal; connections beyond the limit are closed with 503."""
    connections: list[socket.socket] = []
    statuses: dict[int, int] = {}
    try:
        for _ in range(1_000):
            with contextlib.suppress(OSError):
                connections.append(_open(live, "/v1/chat/completions", CHAT | {"max_tokens": 4, "stream": True}))
        for connection in connections:
            with contextlib.suppress(OSError):
                status = int(connection.recv(65_536).split()[1])
                statuses[status] = statuses.get(status, 0) + 1
    finally:
        for connection in connections:
            connection.close()
    assert set(statuses) <= {200, 429, 503}
    assert statuses[200] > 200
    live.wait_idle(within_s=10)


@pytest.mark.parametrize(
    "text", ["a\n\ndata: [DONE]\n\n", "\r\n\r\nevent: error\r\n", "\u2028\u2029\x85", "\x00\x1b[2J"]
)
def test_text_cannot_break_the_framing(live: Server, text: str) -> None:
    """Row 30: echoed text with line breaks travels inside one event's JSON."""
    reply = live.complete(prompt=text, echo=True, stream=True, max_tokens=2, temperature=0)
    assert reply.status == 200
    whole = json.loads(live.complete(prompt=text, echo=True, max_tokens=2, temperature=0).body)
    events = _events(reply.body)
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
    assert "".join(pieces) == whole["choices"][0]["text"]
    assert pieces[0] == text


def _events(body: bytes) -> list[str]:
    """Server-sent events out of a chunked body, by the letter of both formats."""
    text, rest = b"", body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        text, rest = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    events = text.decode().removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event.removeprefix("data: ") for event in events]
