"""Rows 5, 6, 7 of reference/safety.md 5.2: headers, bodies, JSON."""

from __future__ import annotations

import gzip
import json
import socket
import time

import pytest

from tests.server.live import Server, read_reply

CHAT = "/v1/chat/completions"
LIMIT = 20 * 2**20
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = {"model": "gpt-4o-mini", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Long": "x" * 65_536},
        {f"X-{i}": "1" for i in range(10_000)},
        {f"X-{i}": "1" for i in range(101)},
        {"X-Long": "x" * 32_768},
    ],
    ids=["64 KB", "10 000", "101", "32 KB"],
)
def test_large_headers(live: Server, headers: dict[str, str]) -> None:
    """Row 5."""
    reply = live.request("GET", "/health", headers=headers)
    assert (reply.status, reply.error["code"]) == (431, "headers_too_large")


def test_long_url(live: Server) -> None:
    assert live.request("GET", "/health?" + "x" * 65_536).status == 431


def test_slow_headers_are_cut_off(live: Server) -> None:
    """Row 5: one header a fifth of a second would never end; the deadline is one second here."""
    start = time.monotonic()
    with live.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        with pytest.raises(OSError):
            for i in range(100):
                connection.sendall(f"X-{i}: 1\r\n".encode())
                time.sleep(0.2)
    assert time.monotonic() - start < 15  # a hundred headers would take 20 s


@pytest.mark.parametrize("start", [b"", b"GET /health HTTP/1.1\r\nHost: 127"], ids=["silent", "half a header"])
def test_unfinished_headers_get_408(live: Server, start: bytes) -> None:
    reply = live.send(start, timeout_s=5)
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")


def test_a_second_request_is_under_the_clock_as_well(live: Server) -> None:
    with live.connect(5) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert read_reply(connection).status == 200
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert read_reply(connection).status == 408


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/X\r\n\r\n", b"A\r\n\r\n"])
def test_not_http(live: Server, raw: bytes) -> None:
    assert live.send(raw, timeout_s=5).status == 400


def test_websocket_is_not_spoken(live: Server) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "eA==",
        "Sec-WebSocket-Version": "13",
    }
    assert live.request("GET", "/v1/realtime", headers=headers, timeout_s=5).status == 404


def test_body_one_byte_over_the_limit(live: Server) -> None:
    """Row 6: at the limit it is read and judged, one byte more and it is not."""
    start = json.dumps(BODY | {"foo": ""}).encode()[:-2]
    for length, status in ((LIMIT, 400), (LIMIT + 1, 413)):
        reply = live.post(CHAT, start + b" " * (length - len(start) - 2) + b'"}')
        assert reply.status == status


def test_a_length_that_is_only_claimed(live: Server) -> None:
    """Row 6: nothing is reserved for bytes that never come."""
    reply = live.send(f"{HEAD}Content-Length: 99999999999999\r\n\r\n".encode() + b"{", timeout_s=8)
    assert reply.status in (408, 413)
    asks_first = f"{HEAD}Content-Length: 99999999999999\r\nExpect: 100-continue\r\n\r\n"
    assert live.send(asks_first.encode(), timeout_s=5).status == 413


def test_chunked_without_end(live: Server) -> None:
    """Row 6: silent, it meets the clock."""
    reply = live.send(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\n{{    \r\n".encode(), timeout_s=8)
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")


def test_chunked_over_the_limit(live: Server) -> None:
    """Row 6: counted as it comes, whatever the headers say."""
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    raw = f"{HEAD}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode() + chunk * 400 + b"0\r\n\r\n"
    assert live.send(raw).status == 413


def test_length_and_chunked_together(live: Server) -> None:
    """Request smuggling: two ends for one body."""
    reply = live.send(f"{HEAD}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(), timeout_s=5)
    assert reply.status == 400


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "identity, gzip"])
def test_compressed_bodies(live: Server, encoding: str) -> None:
    """Row 6: 10 MB of zeros in 10 KB; nothing is unpacked."""
    reply = live.post(CHAT, gzip.compress(b" " * 10**7), headers={"Content-Encoding": encoding})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_media_types(live: Server, media_type: str) -> None:
    reply = live.post(CHAT, BODY, headers={"Content-Type": media_type})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")


_MESSAGE = b'{"model":"gpt-4o-mini","max_tokens":2,"messages":[{"role":"user","content":%s}]%s}'
JSON = {
    "deep": _MESSAGE % (b"[" * 100_000 + b"]" * 100_000, b""),
    "deep objects": _MESSAGE % (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
    "duplicate keys": _MESSAGE % (b'"hi"', b',"n":1,"n":2'),
    "NaN": _MESSAGE % (b'"hi"', b',"temperature":NaN'),
    "Infinity": _MESSAGE % (b'"hi"', b',"temperature":Infinity'),
    "1e400": _MESSAGE % (b'"hi"', b',"temperature":1e400'),
    "lone surrogate": _MESSAGE % (b'"\\ud800"', b""),
    "byte order mark": b"\xef\xbb\xbf" + _MESSAGE % (b'"hi"', b""),
    "invalid UTF-8": _MESSAGE % (b'"\xc3\x28"', b""),
    "10 MB number": _MESSAGE % (b'"hi"', b',"seed":' + b"9" * 10_000_000),
    "10 MB fraction": _MESSAGE % (b'"hi"', b',"temperature":0.' + b"9" * 10_000_000),
    "not JSON": b"model=gpt-4o-mini",
    "nothing": b" ",
    "array": b"[]",
}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("name", JSON)
def test_json(live: Server, name: str, path: str) -> None:
    """Row 7."""
    start = live.cpu_s
    reply = live.post(path, JSON[name])
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    assert live.cpu_s - start < 1
    assert len(reply.body) < 400


def test_resets_and_half_requests_leave_nothing(live: Server) -> None:
    for _ in range(20):
        connection = live.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.sendall(f"{HEAD}Content-Length: 500\r\n\r\n{{".encode())
        connection.close()
