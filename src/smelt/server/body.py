"""A request body: read within limits, then parsed as the JSON that RFC 8259 and I-JSON (RFC 7493) mean.

Python's parser takes more than that (NaN, duplicate keys, any depth, lone surrogates) and recurses, so the
text is measured first, in one pass without recursion, and the rest is refused while parsing.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from smelt.core.errors import InvalidRequestError, PayloadTooLargeError
from smelt.server.errors import StatusError, shown, timeout_error
from smelt.server.settings import Settings

MAX_DEPTH = 64
MAX_VALUES = 500_000  # commas and opening brackets: 20 MB of "1," would otherwise be 10 million objects
MAX_NUMBER_LEN = 400  # the longest shortest-form double has 24 characters; int() is quadratic in its digits

LINGER_BYTES = 128 * 2**20  # of a body that is too large, read and dropped

# Possessive quantifiers (*+): a 20 MB string is one match that keeps nothing to backtrack into.
_LANDMARK = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+|(?P<comma>,)|(?P<open>[\[{])|(?P<close>[\]}])|(?P<number>[0-9.eE+-]{401,})', re.S
)


class ClientDisconnectedError(Exception):
    """Nobody is there to answer."""


async def read_body(request: Request, settings: Settings, take: Callable[[int], None]) -> bytes:
    """The request's body; `take` is told of bytes before they are kept. Raises 408, 413 or 415 errors, or
    ClientDisconnectedError."""
    headers = request.headers
    if headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise StatusError(
            415, "Compressed request bodies are not accepted: send no Content-Encoding.", code="unsupported_encoding"
        )
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise StatusError(
            415, "Send the request body as JSON, with Content-Type: application/json.", code="unsupported_media_type"
        )
    length = headers.get("content-length", "0")
    if (not length.isdecimal() or int(length[:20]) > settings.max_body_bytes) and "expect" in headers:
        raise _too_large(settings)  # it waits for leave to send, and gets none
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _read(request, settings, take)
    except TimeoutError:
        raise timeout_error("Sending the request body", settings.body_timeout_s) from None


def _too_large(settings: Settings) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The request body is larger than {settings.max_body_bytes} bytes.", code="request_too_large"
    )


async def _read(request: Request, settings: Settings, take: Callable[[int], None]) -> bytes:
    """The whole body. One that is too large is read on for a while and dropped: a client that is cut off in the
    middle of sending sees a broken connection and never the answer."""
    body, num_bytes = bytearray(), 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        piece = message.get("body", b"")
        num_bytes += len(piece)
        if num_bytes <= settings.max_body_bytes:
            take(len(piece))
            body += piece
        else:
            body.clear()
        if not message.get("more_body", False) or num_bytes > settings.max_body_bytes + LINGER_BYTES:
            break
    if num_bytes > settings.max_body_bytes:
        raise _too_large(settings)
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """`body` as a JSON object; InvalidRequestError says what is wrong with it."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"it is not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise _not_json("it starts with a byte order mark")
    _measure(text)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} at character {error.pos}") from None
    if "\\u" in text:  # only an escape can bring in a lone surrogate
        _refuse_lone_surrogates(value)
    if not isinstance(value, dict):
        raise _not_json("the outermost value must be an object")
    return value


def _not_json(reason: str, param: str | None = None) -> InvalidRequestError:
    message = f"We could not parse the JSON body of your request: {reason}."
    return InvalidRequestError(message, param=param, code="invalid_json")


def _measure(text: str) -> None:
    """Refuse what would be expensive to parse, before it is parsed."""
    depth = num_values = 0
    last_key = ""  # of the outermost object: the parameter to blame
    for match in _LANDMARK.finditer(text):
        kind = match.lastgroup
        if kind is None:
            if depth == 1:
                last_key = match.group()[1:-1]
        elif kind == "number":
            raise _not_json(f"a number has more than {MAX_NUMBER_LEN} characters")
        elif kind == "close":
            depth -= 1
        else:
            depth += kind == "open"
            num_values += 1
            if depth > MAX_DEPTH:
                raise _not_json(f"it is nested deeper than {MAX_DEPTH} levels")
            if num_values > MAX_VALUES:
                raise _not_json(f"it has more than {MAX_VALUES} values", param=shown(last_key) or None)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _not_json("an object has the same key twice")
    return value


def _constant(name: str) -> Any:
    raise _not_json(f"{name} is not JSON")


def _float(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise _not_json("a number is too large for a double")
    return value


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _not_json("a string has half a surrogate pair") from None
