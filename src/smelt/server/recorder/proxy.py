"""The proxy: bytes through as they are, in both directions; a copy of what can become a line goes to the keeper.

Plain ASGI over httpx. Nothing is held back for the recording: the answer's bytes are sent as they come, at the pace the
client takes them, and a client that leaves takes its upstream request with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import httpx
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from smelt.core.errors import AuthenticationError, ForbiddenError
from smelt.server.body import ClientDisconnectedError
from smelt.server.errors import StatusError
from smelt.server.middleware import send_error
from smelt.server.recorder.exchange import Exchange, Kind
from smelt.server.settings import Settings, is_loopback
from smelt.server.streaming import ABORT_CONNECTION

KINDS: dict[str, Kind] = {"/chat/completions": "chat", "/completions": "completion"}
_HOP_BY_HOP = frozenset(
    b"connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_KEY_HEADERS = ("authorization", "api-key", "x-api-key")
_CONNECT_TIMEOUT_S = 15.0
_MAX_KEPT_BYTES = 32 * 2**20  # of a request or an answer; longer ones pass and are not recorded
_SHORTEST_SECRET = 8
log = logging.getLogger("smelt.recorder")


@dataclass
class Copy:
    """Bytes that went by, up to a limit."""

    data: bytearray = field(default_factory=bytearray)
    overflowed: bool = False

    def add(self, piece: bytes) -> None:
        """Keep, while there is room."""
        self.overflowed = self.overflowed or len(self.data) + len(piece) > _MAX_KEPT_BYTES
        if self.overflowed:
            self.data.clear()
        else:
            self.data += piece


class Proxy:
    """An ASGI application in front of `upstream` (a base URL, usually ending in /v1).

    keep takes each complete exchange; leave_out takes a word for each that was recordable and is not kept.
    sample: share of recordable requests that are.
    """

    def __init__(
        self,
        upstream: str,
        settings: Settings,
        *,
        keep: Callable[[Exchange], None],
        leave_out: Callable[[str], None],
        sample: float = 1.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.upstream = httpx.URL(upstream.rstrip("/"))
        self.settings = settings
        self.keep, self.leave_out, self.sample = keep, leave_out, sample
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._random = random.Random()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        passage = _Passage(self, scope, receive, send)
        try:
            self._guard(Headers(scope=scope))
            await passage.run()
        except (ForbiddenError, AuthenticationError) as error:
            await send_error(error, send)
        except httpx.TransportError as error:
            log.warning("no answer from upstream: %s", type(error).__name__)
            await passage.fail(error)
        except ClientDisconnectedError:
            if passage.kind:
                self.leave_out("client left")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
        if self._client is not None:
            await self._client.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    @property
    def client(self) -> httpx.AsyncClient:
        """One pool for all requests; no time limit of its own once connected: that is the client's to choose."""
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
            self._client = httpx.AsyncClient(limits=limits, timeout=timeout, transport=self._transport)
        return self._client

    def _guard(self, headers: Headers) -> None:
        """A web page must not reach the upstream through us, nor may the network without a key."""
        hosts = self.settings.host_names
        name = headers.get("host", "").rsplit(":", 1)[0] if not headers.get("host", "").endswith("]") else ""
        if hosts is not None and name and name.lower() not in hosts:
            raise ForbiddenError("This Host is not served here.", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{headers.get('host', '')}".lower():
            raise ForbiddenError("Web pages may not use the recorder.", code="origin_not_allowed")
        if not is_loopback(self.settings.host) and not any(name in headers for name in _KEY_HEADERS):
            raise AuthenticationError("Beyond this machine the recorder passes requests with a key only.")

    def kind_of(self, scope: Scope) -> Kind | None:
        """What the request would be recorded as; None: passed on only."""
        if scope["method"] != "POST":
            return None
        path = scope["path"].rstrip("/")
        kind = next((kind for suffix, kind in KINDS.items() if path.endswith(suffix)), None)
        return kind if kind and self._random.random() < self.sample else None

    def url_of(self, scope: Scope) -> httpx.URL:
        """Where a request goes: /v1/x to <upstream>/x where the upstream has a path of its own, else to /v1/x."""
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        base = self.upstream.raw_path.rstrip(b"/")
        if base and (path == b"/v1" or path.startswith(b"/v1/")):
            path = path[3:]
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        return self.upstream.copy_with(raw_path=base + path + query)


class _Passage:
    """One request on its way."""

    def __init__(self, proxy: Proxy, scope: Scope, receive: Receive, send: Send) -> None:
        self.proxy, self.scope, self._receive, self._send = proxy, scope, receive, send
        self.kind = proxy.kind_of(scope)
        self.started = False
        self._asked, self._answered = Copy(), Copy()
        self._body_read = asyncio.Event()

    async def run(self) -> None:
        """Until the answer is through or the client is gone. Raises ClientDisconnectedError and httpx's errors."""
        passing = asyncio.ensure_future(self._pass())
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({passing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not passing.done():
                raise ClientDisconnectedError
            passing.result()
        finally:
            passing.cancel()
            watching.cancel()
            await asyncio.gather(passing, watching, return_exceptions=True)

    async def fail(self, error: Exception) -> None:
        """502 while nothing was sent; afterwards only a cut connection tells the client that more was to come."""
        if self.kind:
            self.proxy.leave_out("upstream failed")
        if not self.started:
            word = "could not be reached" if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else "failed"
            await send_error(StatusError(502, f"The upstream server {word}.", code="upstream_error"), self._send)
        elif abort := self.scope.get("state", {}).get(ABORT_CONNECTION):
            abort()

    async def _watch(self) -> None:
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _body(self) -> AsyncGenerator[bytes, None]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnectedError
            piece = message.get("body", b"")
            if self.kind:
                self._asked.add(piece)
            if piece:
                yield piece
            if not message.get("more_body"):
                self._body_read.set()
                return

    async def _pass(self) -> None:
        headers = Headers(scope=self.scope)
        has_body = "content-length" in headers or "transfer-encoding" in headers
        if not has_body:
            self._body_read.set()
        request = httpx.Request(
            self.scope["method"],
            self.proxy.url_of(self.scope),
            headers=[(name, value) for name, value in self.scope["headers"] if name not in _HOP_BY_HOP | {b"host"}],
            content=self._body() if has_body else None,
        )
        answer = await self.proxy.client.send(request, stream=True)
        try:
            await self._answer(answer)
        finally:
            await answer.aclose()
        self._hand_over(answer)

    async def _answer(self, answer: httpx.Response) -> None:
        headers = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _HOP_BY_HOP]
        self.started = True
        await self._send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        async for piece in answer.aiter_raw():
            if self.kind:
                self._answered.add(piece)
            await self._send_piece(piece)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_piece(self, piece: bytes) -> None:
        """A client that takes nothing for send_timeout_s is cut off, as the server does it."""
        try:
            async with asyncio.timeout(self.proxy.settings.send_timeout_s):
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        except TimeoutError:
            if abort := self.scope.get("state", {}).get(ABORT_CONNECTION):
                abort()
            raise ClientDisconnectedError from None

    def _hand_over(self, answer: httpx.Response) -> None:
        if self.kind is None:
            return
        if answer.status_code != 200:
            self.proxy.leave_out("refused by upstream")
        elif self._asked.overflowed or self._answered.overflowed:
            self.proxy.leave_out("too large")
        else:
            exchange = Exchange(
                kind=self.kind,
                request=bytes(self._asked.data),
                response=bytes(self._answered.data),
                encoding=answer.headers.get("content-encoding", ""),
                content_type=answer.headers.get("content-type", ""),
                secrets=_secrets(Headers(scope=self.scope)),
            )
            self.proxy.keep(exchange)


def _secrets(headers: Headers) -> tuple[str, ...]:
    """The keys this client used: masked wherever they stand, whatever their shape."""
    found = (headers.get(name, "").rpartition(" ")[2] for name in _KEY_HEADERS)
    return tuple(secret for secret in found if len(secret) >= _SHORTEST_SECRET)
