"""`smelt record` between a real client and an upstream: bytes as they were, and a data set beside them."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from smelt.cli.record import RecordOptions, record_command
from smelt.core.errors import InvalidRequestError
from smelt.data.chat_jsonl import read_chat_jsonl
from smelt.server.errors import StartError
from tests.server.recorder.upstream import Recorder, Script, Upstream, recording, upstream

KEY = "sk-test-abcdefghijklmnopqrstuvwx"
ANSWER = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m-1",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
ASKED = {"model": "m", "messages": [{"role": "user", "content": f"Hi, my key is {KEY}"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with upstream() as found:
        yield found


@pytest.fixture(scope="module")
def recorder(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    with recording(server.url, tmp_path_factory.mktemp("recorded"), "--consent", "--mask", "emails") as found:
        yield found


def settled(check: Callable[[], Any], within_s: float = 10.0) -> Any:
    """What `check` gives, once it is true."""
    deadline = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
    return found


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": [choice]}


def sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def test_without_consent_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"(?s)clear text.*--consent"):
        record_command(RecordOptions(upstream="http://127.0.0.1:9/v1", out=tmp_path / "x.jsonl"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"upstream": "ftp://x"}, "sought a URL"),
        ({"upstream": "http://u:p@x/v1"}, "without login"),
        ({"sample": 0.0}, "--sample 0"),
        ({"mask": "emails, names"}, "--mask names: sought emails or cards"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(StartError, match=word):
        record_command(RecordOptions(**{"upstream": "http://x/v1", "out": tmp_path / "x", "consent": True, **wrong}))


def test_bytes_pass_unchanged_and_a_line_is_kept(server: Upstream, recorder: Recorder) -> None:
    body = json.dumps(ANSWER, indent=3).encode() + b"  \n"
    server.answer = lambda script: script.whole(body, X_Request_Id="r-1")
    before = len(recorder.lines())
    asked = json.dumps(ASKED, indent=1).encode()
    reply = recorder.request(
        "POST",
        "/v1/chat/completions?x=%20y",
        asked,
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    assert (reply.status, reply.body, reply.headers["x-request-id"]) == (200, body, "r-1")
    seen = server.seen[-1]
    assert (seen.path, seen.body) == ("/v1/chat/completions?x=%20y", asked)
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["host"] == server.url.removeprefix("http://").removesuffix("/v1")
    line = settled(lambda: recorder.lines()[before:])[0]
    assert line["messages"][1] == {"role": "assistant", "content": "Hello."}
    assert line["messages"][0]["content"] == "Hi, my key is [API_KEY]"
    assert KEY not in recorder.out.read_text() and line["metadata"]["masked"] == {"api_key": 1}


def test_the_official_client_streams_through_and_the_line_holds_the_call(server: Upstream, recorder: Recorder) -> None:
    before = len(recorder.lines())

    def answer(script: Script) -> None:
        script.begin_stream()
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
        script.piece(sse(chunk(role="assistant", tool_calls=[call])))
        for part in ('{"city":', ' "Bern"}'):
            script.piece(sse(chunk(tool_calls=[{"index": 0, "function": {"arguments": part}}])))
        script.piece(sse(chunk("tool_calls")))
        script.piece(sse({**chunk(), "choices": [], "usage": ANSWER["usage"]}) + b"data: [DONE]\n\n")
        script.piece(b"")

    server.answer = answer
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    client = openai.OpenAI(base_url=recorder.first["base_url"], api_key=KEY, max_retries=0)
    chunks = list(
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "ada@example.org?"}], tools=tools, stream=True
        )
    )
    client.close()
    assert "".join(c.choices[0].delta.tool_calls[0].function.arguments for c in chunks[:3]) == '{"city": "Bern"}'
    line = settled(lambda: recorder.lines()[before:])[0]
    assert line["messages"][0]["content"] == "[EMAIL]?"
    assert line["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"city": "Bern"}'}
    assert line["tools"] == tools and line["metadata"]["usage"]["total_tokens"] == 5
    example = read_chat_jsonl(recorder.out).records[-1].example
    assert example.answer.tool_calls[0].arguments == '{"city": "Bern"}' and example.tools[0].name == "f"


def test_a_stream_arrives_as_it_is_sent(server: Upstream, recorder: Recorder) -> None:
    def answer(script: Script) -> None:
        script.begin_stream()
        script.piece(sse(chunk(content="one")))
        deadline = time.monotonic() + 10
        while not got and time.monotonic() < deadline:  # the second piece waits until the first has arrived
            time.sleep(0.01)
        script.piece(sse(chunk("stop")) + b"data: [DONE]\n\n")
        script.piece(b"")

    got: list[bytes] = []
    before = len(recorder.lines())
    server.answer = answer
    connection = http.client.HTTPConnection("127.0.0.1", recorder.port, timeout=20)
    connection.request("POST", "/v1/chat/completions", json.dumps({**ASKED, "stream": True}))
    reply = connection.getresponse()
    got.append(reply.read1())
    assert b"one" in got[0] and b"DONE" not in got[0]
    assert b"DONE" in reply.read()
    connection.close()
    assert settled(lambda: recorder.lines()[before:])[0]["messages"][1]["content"] == "one"


def test_compressed_answers_pass_compressed(server: Upstream, recorder: Recorder) -> None:
    before = len(recorder.lines())
    packed = gzip.compress(json.dumps(ANSWER).encode())
    server.answer = lambda script: script.whole(packed, Content_Encoding="gzip")
    reply = recorder.post("/v1/chat/completions", ASKED)
    assert reply.body == packed and reply.headers["content-encoding"] == "gzip"
    assert settled(lambda: recorder.lines()[before:])[0]["messages"][1]["content"] == "Hello."


def test_other_paths_and_refusals_pass_and_are_not_kept(server: Upstream, recorder: Recorder) -> None:
    before = recorder.out.read_bytes()
    server.answer = lambda script: script.whole(b'{"data":[]}', 200)
    assert recorder.request("GET", "/v1/models").body == b'{"data":[]}'
    assert (server.seen[-1].method, server.seen[-1].path) == ("GET", "/v1/models")
    assert recorder.request("DELETE", "/v1/files/f-1").status == 200
    server.answer = lambda script: script.whole(b'{"error":{"message":"slow down"}}', 429, Retry_After="7")
    reply = recorder.post("/v1/chat/completions", ASKED)
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    time.sleep(0.2)
    assert recorder.out.read_bytes() == before


def test_a_client_that_leaves_takes_its_request_with_it(server: Upstream, recorder: Recorder) -> None:
    before, broken = recorder.out.read_bytes(), []

    def answer(script: Script) -> None:
        script.begin_stream()
        try:
            for _ in range(1000):
                script.piece(sse(chunk(content="more")))
                time.sleep(0.01)
        except OSError:
            broken.append(True)
            script.close_connection = True

    server.answer = answer
    with recorder.connect() as connection:
        body = json.dumps({**ASKED, "stream": True}).encode()
        fields = f"Host: 127.0.0.1:{recorder.port}\r\nContent-Length: {len(body)}"
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        assert b"more" in connection.recv(65536) + connection.recv(65536)
    settled(lambda: broken, within_s=5)
    assert recorder.out.read_bytes() == before


def test_a_slow_client_holds_the_upstream_back(server: Upstream, recorder: Recorder) -> None:
    """Nothing is read from upstream that the client has not taken: 64 MB do not gather in the recorder."""
    sent, before = [0], recorder.rss_bytes

    def answer(script: Script) -> None:
        script.begin_stream()
        try:
            for _ in range(64):
                script.piece(b"x" * 2**20)
                sent[0] += 1
        except OSError:
            script.close_connection = True

    server.answer = answer
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", recorder.port))
        connection.sendall(f"GET /v1/long HTTP/1.1\r\nHost: 127.0.0.1:{recorder.port}\r\n\r\n".encode())
        settled(lambda: sent[0] >= 1)
        time.sleep(1.0)
        assert sent[0] < 32
        assert recorder.rss_bytes - before < 16 * 2**20


def test_an_upstream_that_dies_is_not_hidden(server: Upstream, recorder: Recorder) -> None:
    before = recorder.out.read_bytes()

    def answer(script: Script) -> None:
        script.begin_stream()
        script.piece(sse(chunk(content="half")))
        script.vanish()

    server.answer = answer
    connection = http.client.HTTPConnection("127.0.0.1", recorder.port, timeout=20)
    connection.request("POST", "/v1/chat/completions", json.dumps({**ASKED, "stream": True}))
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        connection.getresponse().read()
    connection.close()
    assert recorder.out.read_bytes() == before


def test_web_pages_and_strange_hosts_are_refused(server: Upstream, recorder: Recorder) -> None:
    count = len(server.seen)
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        reply = recorder.request("GET", "/v1/models", headers=headers)
        assert reply.status == 403 and reply.error["code"] in ("origin_not_allowed", "host_not_allowed")
    assert len(server.seen) == count


def test_a_kill_loses_no_line_and_an_interrupt_counts(server: Upstream, tmp_path: Path) -> None:
    server.answer = lambda script: script.whole(json.dumps(ANSWER).encode())
    with recording(server.url, tmp_path, "--consent") as first:
        for _ in range(3):
            assert first.post("/v1/chat/completions", ASKED).status == 200
        settled(lambda: len(first.lines()) == 3)
        os.kill(first.process.pid, signal.SIGKILL)
    with (tmp_path / "traffic.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "us')
    with recording(server.url, tmp_path, "--consent") as second:
        assert second.post("/v1/chat/completions", ASKED).status == 200
        server.answer = lambda script: script.whole(b'{"error":{}}', 500)
        assert second.post("/v1/chat/completions", ASKED).status == 500
        answer = {"model": "m", "choices": [{"text": " on.", "index": 0, "finish_reason": "stop"}]}
        server.answer = lambda script: script.whole(json.dumps(answer).encode())
        assert second.post("/v1/completions", {"prompt": "Go"}).status == 200
        told = second.finish()
    assert told == {"lines": {"chat": 1, "completion": 1}, "left_out": {"refused by upstream": 1}}
    assert len(second.lines()) == 4
    assert json.loads((tmp_path / "traffic.completions.jsonl").read_text())["completion"] == " on."


def test_an_upstream_that_is_not_there_is_502(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with recording(url, tmp_path, "--consent", "--sample", "0.5") as recorder:
        reply = recorder.post("/v1/chat/completions", ASKED)
        assert reply.status == 502 and reply.error["code"] == "upstream_error"
