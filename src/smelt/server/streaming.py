"""Work that ends when its client goes away, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from smelt.core.errors import UserError
from smelt.server.body import ClientDisconnectedError
from smelt.server.errors import envelope, shutting_down, timeout_error
from smelt.server.middleware import error_log
from smelt.server.record import record_of
from smelt.server.settings import Settings

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
ABORT_CONNECTION = "abort_connection"  # what `protocol` leaves in the scope's state: closes without flushing


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """`work`'s result. When the client disconnects first, `work` is cancelled and ClientDisconnectedError raised."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if watcher.done():
            raise ClientDisconnectedError
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
        # An exception holds this frame, and the task the exception: a circle that would keep the request's body.
        del task, watcher


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event. JSON escapes every line break, so no text can end the event early."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends the generator's events, then [DONE]. An error on the way becomes the last event, without [DONE]."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        settings: Settings,
        *,
        deadline_s: float,
        on_end: Callable[[], None],
    ) -> None:
        """`deadline_s` is the event loop's time at which the whole request must be over."""
        self.on_end = on_end
        self.is_over = False
        self.events = events
        self.settings = settings
        self.deadline_s = deadline_s
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end, the deadline or the client's departure."""
        try:
            async with aclosing(self.events):
                await while_connected(receive, self._run(scope, send))
        except ClientDisconnectedError:
            if not self.is_over:  # else it left as it should, after the end
                raise
        except asyncio.CancelledError:
            await self._send(scope, send, self._failure(scope, shutting_down()))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.on_end()

    async def _run(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with asyncio.timeout_at(self.deadline_s):
                async for data in self.events:
                    await self._send(scope, send, data)
            last = DONE
        except TimeoutError:
            last = self._failure(scope, timeout_error("The request", self.settings.request_timeout_s))
        except ClientDisconnectedError:
            raise
        except Exception as error:
            last = self._failure(scope, error)
        await self._send(scope, send, last)
        self.is_over = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _failure(self, scope: Scope, error: Exception) -> bytes:
        record = record_of(scope)
        body = envelope(error)
        record.error_code = body["error"]["code"] or ""
        if not isinstance(error, UserError):
            error_log.error("request %s failed while streaming", record.request_id, exc_info=error)
        return event(body)

    async def _send(self, scope: Scope, send: Send, data: bytes) -> None:
        """One event; a client that reads nothing for send_timeout_s is cut off, with what it left unread."""
        try:
            async with asyncio.timeout(self.settings.send_timeout_s):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            if abort := scope.get("state", {}).get(ABORT_CONNECTION):
                abort()
            raise ClientDisconnectedError from None
