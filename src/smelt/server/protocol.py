"""uvicorn's HTTP/1.1 connection, with a clock on the headers and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from smelt.core.errors import InvalidRequestError
from smelt.server.errors import StatusError, error_body, error_headers, status_of, timeout_error
from smelt.server.middleware import headers_too_large
from smelt.server.settings import Settings
from smelt.server.streaming import ABORT_CONNECTION


class Connection(H11Protocol):
    """One connection. The first byte of a request starts a clock that the end of its headers stops.

    uvicorn's own clock covers an idle connection only, and any byte stops it: a client that sends one header
    a second would hold the connection for ever.
    """

    settings: Settings  # set by `connection_class`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_clock: asyncio.TimerHandle | None = None
        self.app_state = {**self.app_state, ABORT_CONNECTION: self._abort}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a client that connects and says nothing is under it as well."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(StatusError(503, "Too many connections; try again later.", code="server_is_overloaded"))
        else:
            self._start_clock()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; stop the clock when the headers are complete, start it with the next request."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:
            self._start_clock()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock with the connection."""
        self._stop_clock()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; called while uvicorn handles h11's exception, which knows the better status."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:
            self._refuse(headers_too_large(self.settings))
        elif status == 501:
            self._refuse(StatusError(501, "This transfer encoding is not supported.", code="unsupported_encoding"))
        else:
            self._refuse(InvalidRequestError("The request is not valid HTTP/1.1.", code="invalid_http"))

    def _start_clock(self) -> None:
        if self._header_clock is None:
            self._header_clock = self.loop.call_later(self.settings.header_timeout_s, self._headers_late)

    def _stop_clock(self) -> None:
        if self._header_clock is not None:
            self._header_clock.cancel()
            self._header_clock = None

    def _headers_late(self) -> None:
        self._header_clock = None
        if not self.transport.is_closing():
            self._refuse(timeout_error("Sending the request's headers", self.settings.header_timeout_s))

    def _refuse(self, error: Exception) -> None:
        """Answer, where the parser still allows it, and close."""
        self._stop_clock()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status, body = status_of(error), error_body(error)
            headers = [h for h in error_headers(error) if h[0] != b"connection"]
            lines = [b"%s: %s" % header for header in (*headers, (b"connection", b"close"))]
            self.transport.write(b"\r\n".join([b"HTTP/1.1 %d Refused" % status, *lines, b"", body]))
        self.transport.close()

    def _abort(self) -> None:
        self.transport.abort()


def connection_class(settings: Settings) -> type[Connection]:
    """The class uvicorn makes connections of, for these settings."""
    return type("ConfiguredConnection", (Connection,), {"settings": settings})
