"""Every way out of a request: the client leaves, the clock runs out, the model fails, the socket is full."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from smelt.core.errors import EngineError, OverloadedError
from smelt.generate.events import AnswerText
from smelt.server.app import create_app
from smelt.server.settings import Settings
from smelt.server.streaming import ABORT_CONNECTION
from tests.server.conftest import CHAT, COMPLETION
from tests.server.fake import FakeLLM


class Peer:
    """An ASGI server's side of one request, under the test's control."""

    def __init__(self, llm: FakeLLM, path: str, body: dict[str, Any], **settings: Any) -> None:
        self.app = create_app(llm, Settings(**settings))
        raw = json.dumps(body).encode()
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        self.aborted = False
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {ABORT_CONNECTION: self._abort},
        }
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": raw, "more_body": False})
        self.sent: list[dict[str, Any]] = []
        self.can_send = asyncio.Event()
        self.can_send.set()

    def _abort(self) -> None:
        self.aborted = True

    async def send(self, message: dict[str, Any]) -> None:
        await self.can_send.wait()
        self.sent.append(message)

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.app(self.scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        message = await self.inbox.get()
        if message["type"] == "http.disconnect":
            self.leave()  # whoever asks again hears it again
        return message

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


REQUESTS = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/completions", COMPLETION),
    ("/v1/completions", COMPLETION | {"stream": True}),
    ("/v1/completions", COMPLETION | {"prompt": ["a", "b", "c"]}),
    ("/v1/completions", COMPLETION | {"prompt": ["a", "b", "c"], "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_client_that_leaves_ends_its_work(path: str, body: dict[str, Any], llm: FakeLLM) -> None:
    llm.pause = asyncio.Event()
    peer = Peer(llm, path, body)
    task = peer.start()
    await until(lambda: llm.num_open > 0)
    peer.leave()
    async with asyncio.timeout(2):
        await task
    assert llm.num_open == 0
    assert peer.app.state.service.num_admitted == 0


async def test_a_client_that_leaves_with_the_first_event(llm: FakeLLM) -> None:
    """The departure once was lost when it came together with the first event; the stream then ran to its end."""
    llm.pause = asyncio.Event()
    peer = Peer(llm, "/v1/chat/completions", CHAT | {"stream": True})
    peer.leave()
    async with asyncio.timeout(2):
        await peer.start()
    assert (llm.num_open, peer.sent) == (0, [])


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_server_that_shuts_down_ends_its_work(path: str, body: dict[str, Any], llm: FakeLLM) -> None:
    llm.pause = asyncio.Event()
    peer = Peer(llm, path, body)
    task = peer.start()
    await until(lambda: llm.num_open > 0)
    task.cancel()
    await task
    assert b'"code": "server_is_shutting_down"' in peer.body.replace(b'":"', b'": "')
    assert peer.sent[-1].get("more_body", False) is False
    assert llm.num_open == 0
    assert peer.app.state.service.num_admitted == 0


async def test_a_client_that_leaves_before_its_body_is_whole(llm: FakeLLM) -> None:
    peer = Peer(llm, "/v1/chat/completions", CHAT)
    await peer.inbox.get()
    peer.inbox.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    task = peer.start()
    peer.leave()
    await task
    assert (peer.sent, llm.requests) == ([], [])


async def test_deadline_before_the_first_event_is_408(llm: FakeLLM) -> None:
    llm.pause = asyncio.Event()
    peer = Peer(llm, "/v1/chat/completions", CHAT, request_timeout_s=0.05)
    await peer.start()
    assert peer.status == 408
    assert json.loads(peer.body)["error"]["code"] == "request_timeout"
    assert llm.num_open == 0


async def test_deadline_in_a_stream_is_its_last_event(llm: FakeLLM) -> None:
    llm.pause = asyncio.Event()
    peer = Peer(llm, "/v1/chat/completions", CHAT | {"stream": True}, request_timeout_s=0.1)
    await peer.start()
    events = peer.body.decode().removesuffix("\n\n").split("\n\n")
    assert peer.status == 200
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert llm.num_open == 0
    assert peer.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_failure_in_a_stream_is_its_last_event(llm: FakeLLM) -> None:
    """No [DONE]: a client that waits for it must not take the answer for whole."""
    llm.script = (AnswerText(0, "Hel"), EngineError("/srv/secret"))
    peer = Peer(llm, "/v1/chat/completions", CHAT | {"stream": True})
    await peer.start()
    assert peer.body.decode().split("\n\n")[-2].startswith('data: {"error":{"message":"The server had an error')
    assert b"[DONE]" not in peer.body
    assert b"secret" not in peer.body
    assert peer.app.state.service.num_admitted == 0


async def test_failure_before_the_first_event_has_a_status(llm: FakeLLM) -> None:
    llm.script = (OverloadedError("full"),)
    peer = Peer(llm, "/v1/chat/completions", CHAT | {"stream": True})
    await peer.start()
    assert peer.status == 429


async def test_a_client_that_does_not_read_is_cut_off(llm: FakeLLM) -> None:
    peer = Peer(llm, "/v1/chat/completions", CHAT | {"stream": True}, send_timeout_s=0.05)
    llm.pause = asyncio.Event()
    task = peer.start()
    await until(lambda: len(peer.sent) == 3)
    peer.can_send.clear()
    llm.pause.set()
    await task
    assert peer.aborted
    assert llm.num_open == 0


async def test_no_more_requests_than_admitted(llm: FakeLLM) -> None:
    llm.pause = asyncio.Event()
    first = Peer(llm, "/v1/chat/completions", CHAT | {"stream": True}, max_requests=1)
    task = first.start()
    await until(lambda: llm.num_open == 1)
    second = Peer(llm, "/v1/chat/completions", CHAT)
    second.app = first.app
    await second.start()
    assert second.status == 429
    assert (b"retry-after", b"1") in second.sent[0]["headers"]
    llm.pause.set()
    await task
    third = Peer(llm, "/v1/chat/completions", CHAT)
    third.app = first.app
    await third.start()
    assert third.status == 200


async def test_no_more_body_bytes_than_the_house_holds(llm: FakeLLM) -> None:
    peer = Peer(llm, "/v1/chat/completions", CHAT | {"user": "x" * 2000}, max_buffered_bytes=1024)
    await peer.start()
    assert peer.status == 429
    assert peer.app.state.service.num_buffered_bytes == 0


async def test_body_deadline(llm: FakeLLM) -> None:
    peer = Peer(llm, "/v1/chat/completions", CHAT, body_timeout_s=0.05)
    await peer.inbox.get()
    await peer.start()
    assert peer.status == 408
    assert (b"connection", b"close") in peer.sent[0]["headers"]


def test_a_refused_body_is_freed_at_once(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception held the frame that waited for it, and the frame the task that held the exception.

    So the parsed body of a refused request, 30 MB in the worst case, stayed until the collector came by.
    """

    class Parsed(dict[str, Any]):
        pass

    seen: list[weakref.ref[Parsed]] = []

    def parse(body: bytes) -> Parsed:
        parsed = Parsed(json.loads(body))
        seen.append(weakref.ref(parsed))
        return parsed

    monkeypatch.setattr("smelt.server.service.parse_object", parse)
    gc.disable()
    try:
        assert client.post("/v1/chat/completions", json={"model": "m", "messages": 1}).status_code == 400
        assert client.post("/v1/completions", json={"model": "m", "prompt": "x"}).status_code == 404
        assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()
