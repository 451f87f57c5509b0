"""The layers around every route, outermost first: Recorder, HeaderLimits, OriginGuard, KeyGuard. Plain ASGI.

They run before routing, so an unknown path is guarded like a known one. Only HTTP passes; a WebSocket is closed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smelt.core.errors import AuthenticationError, ForbiddenError, UserError
from smelt.server.body import ClientDisconnectedError
from smelt.server.errors import StatusError, envelope, error_body, error_headers, shutting_down, status_of
from smelt.server.record import SCOPE_KEY, Record, record_of
from smelt.server.settings import ANY_MODEL, Settings

OPENAI_VERSION = "2020-10-01"
OPEN_PATHS = frozenset({"/health"})  # a status word and nothing else, so that a load balancer needs no key
CLIENT_CLOSED = 499
access_log = logging.getLogger("smelt.access")
error_log = logging.getLogger("smelt.server")


async def send_error(error: Exception, send: Send) -> None:
    """A whole error reply."""
    await send({"type": "http.response.start", "status": status_of(error), "headers": error_headers(error)})
    await send({"type": "http.response.body", "body": error_body(error)})


class Recorder:
    """Gives each request its id, its headers, its log line, and an answer whatever happens inside."""

    def __init__(self, app: ASGIApp, done: Callable[[Record, Scope], None]) -> None:
        self.app = app
        self.done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then note how it ended."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        client = scope["client"][0] if scope.get("client") else ""
        record = scope[SCOPE_KEY] = Record(scope["method"], scope["path"], client)

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_stamps(record)]}
            await send(message)

        try:
            await self.app(scope, receive, stamped)
        except ClientDisconnectedError:
            record.status = CLIENT_CLOSED
        except asyncio.CancelledError:  # only a shutdown cancels a request, and waits for nothing else of it
            await self._answer(shutting_down(), record, stamped)
        except Exception as error:
            await self._answer(error, record, stamped)
        finally:
            self.done(record, scope)
            access_log.info(record.log_line())

    async def _answer(self, error: Exception, record: Record, send: Send) -> None:
        record.error_code = envelope(error)["error"]["code"] or ""
        if not isinstance(error, UserError):
            error_log.error("request %s failed", record.request_id, exc_info=error)
        if record.status == 0:
            await send_error(error, send)


def _stamps(record: Record) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-request-id", record.request_id.encode()),
        (b"openai-processing-ms", str(round(record.elapsed_s * 1000)).encode()),
        (b"openai-version", OPENAI_VERSION.encode()),
    ]


class HeaderLimits:
    """431 for more or longer headers than the settings allow."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count and measure the headers."""
        if scope["type"] == "http":
            headers = scope["headers"]
            num_bytes = sum(len(name) + len(value) for name, value in headers) + len(scope.get("raw_path", b""))
            num_bytes += len(scope["query_string"])
            if len(headers) > self.settings.max_headers or num_bytes > self.settings.max_header_bytes:
                raise headers_too_large(self.settings)
        await self.app(scope, receive, send)


def headers_too_large(settings: Settings) -> StatusError:
    """431, with the limits."""
    return StatusError(
        431,
        f"The request's headers are too large: at most {settings.max_headers} headers, "
        f"{settings.max_header_bytes} bytes together with the URL.",
        code="headers_too_large",
    )


class OriginGuard:
    """403 for a foreign Host or Origin: what a web page can make a browser send to a server on this machine.

    A listed origin gets the CORS headers that let its pages read the answers.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.hosts = settings.host_names
        self.origins = frozenset(origin.rstrip("/").lower() for origin in settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Compare Host and Origin with what may be used."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and host and _name_of(host) not in self.hosts:
            raise ForbiddenError(
                "This Host is not served here; add it with SMELT_ALLOWED_HOSTS.", code="host_not_allowed"
            )
        origin = headers.get("origin")
        if origin is None or origin.lower() == f"{scope['scheme']}://{host}".lower():
            return await self.app(scope, receive, send)
        if not {origin.lower(), ANY_MODEL} & self.origins:
            raise ForbiddenError(
                "This Origin may not use the server; add it with SMELT_ALLOWED_ORIGINS.", code="origin_not_allowed"
            )
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await send({"type": "http.response.start", "status": 204, "headers": _preflight(origin)})
            return await send({"type": "http.response.body", "body": b""})

        async def shared(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_cors(origin)]}
            await send(message)

        # Errors must be readable by the page as well, so they are answered here and not further out.
        try:
            await self.app(scope, receive, shared)
        except UserError as error:
            record = record_of(scope)
            record.error_code = error.code or ""
            if record.status:
                raise
            await send_error(error, shared)


def _name_of(host: str) -> str:
    """A Host header without its port: `[::1]:8000` is `[::1]`."""
    return (host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]).lower()


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"x-request-id"),
        (b"vary", b"origin"),
    ]


def _preflight(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        *_cors(origin),
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", b"authorization, content-type, x-stainless-*, openai-*"),
        (b"access-control-max-age", b"600"),
    ]


class KeyGuard:
    """401 for everything but /health without one of the keys. With no keys configured everything passes."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.digests = tuple(_digest(key.get_secret_value().encode()) for key in settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Compare the Authorization header with the keys."""
        if scope["type"] == "http" and self.digests and scope["path"] not in OPEN_PATHS:
            digest = self._check([value for name, value in scope["headers"] if name == b"authorization"])
            record_of(scope).tenant = digest.hex()[:16]
        await self.app(scope, receive, send)

    def _check(self, values: list[bytes]) -> bytes:
        """The digest of the key, which is one of ours. Raises AuthenticationError."""
        if not values:
            raise AuthenticationError(
                "You didn't provide an API key. Provide it in an Authorization header using Bearer auth "
                "(i.e. Authorization: Bearer YOUR_KEY)."
            )
        scheme, _, key = values[0].partition(b" ")
        given = _digest(key.strip())
        # Digests have one length and every key is compared in full: the time says nothing about a prefix.
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]
        if len(values) != 1 or scheme.lower() != b"bearer" or not any(matches):
            raise AuthenticationError("Incorrect API key provided.", code="invalid_api_key")
        return given


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
