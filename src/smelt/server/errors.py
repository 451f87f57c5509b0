"""Errors as OpenAI writes them: `{"error": {"message", "type", "param", "code"}}`, code a string or null.

UserError's kinds get their status from the table below; `StatusError` carries one of its own, for what only
HTTP knows (a route, a method, a header, a clock). Anything else is our failure and says no more than that.
"""

from __future__ import annotations

import json
from typing import Any

from smelt.core.errors import (
    AuthenticationError,
    ContextLengthError,
    EngineError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    SmeltError,
    StoreError,
    UserError,
)

STATUSES: dict[type[UserError], int] = {
    InvalidRequestError: 400,
    ContextLengthError: 400,
    AuthenticationError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    PayloadTooLargeError: 413,
    OverloadedError: 429,
}
RETRY_AFTER_S = 1


class StartError(SmeltError):
    """The server cannot start as asked; the message names the flag or the port."""


class StatusError(UserError):
    """A refusal with an HTTP status of its own."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status


def timeout_error(what: str, seconds: float) -> StatusError:
    """408: `what` took longer than `seconds`."""
    return StatusError(408, f"{what} took longer than the {seconds:g} seconds it may take.", code="request_timeout")


def shutting_down() -> StatusError:
    """503 for what a shutdown cuts off."""
    return StatusError(503, "The server is shutting down.", code="server_is_shutting_down")


def unknown_route(method: str, path: str) -> StatusError:
    """404 for a path no route has."""
    return StatusError(404, f"Invalid URL ({method} {shown(path)})", code="unknown_url")


def wrong_method(method: str, path: str) -> StatusError:
    """405 for a path that has a route, but not for this method."""
    return StatusError(405, f"Not allowed to {method} on {shown(path)}.", code="method_not_supported")


def shown(value: str, limit: int = 64) -> str:
    """A short, one-line, printable form of a caller's value, fit to be put into a message."""
    text = value if len(value) <= limit else value[:limit] + "…"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def status_of(error: Exception) -> int:
    """The HTTP status of any exception."""
    if isinstance(error, StatusError):
        return error.status
    if isinstance(error, StoreError):
        return 503
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return 500


def envelope(error: Exception) -> dict[str, Any]:
    """The JSON value that tells the caller about `error`, and nothing about the server."""
    status = status_of(error)
    if isinstance(error, UserError):
        kind = "requests" if status == 429 else "invalid_request_error"
        code = error.code or ("rate_limit_exceeded" if status == 429 else None)
        fields = {"message": error.message, "type": kind, "param": error.param, "code": code}
    elif isinstance(error, StoreError):
        text = "Stored objects cannot be reached at the moment. Other requests are not affected."
        fields = {"message": text, "type": "server_error", "param": None, "code": "store_unavailable"}
    else:
        text = "The server had an error while processing your request. The next request is not affected."
        code = "engine_error" if isinstance(error, EngineError) else "internal_error"
        fields = {"message": text, "type": "server_error", "param": None, "code": code}
    return {"error": fields}


def error_body(error: Exception) -> bytes:
    """`envelope` as JSON bytes."""
    return json.dumps(envelope(error)).encode()


def error_headers(error: Exception) -> list[tuple[bytes, bytes]]:
    """Headers of an error reply, for the layers that speak plain ASGI."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(error_body(error))).encode())]
    status = status_of(error)
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    if status in {408, 413, 431}:  # the rest of the request is unread: this connection cannot carry another
        headers.append((b"connection", b"close"))
    return headers
