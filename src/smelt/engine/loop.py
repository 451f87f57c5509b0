"""One thread that steps the engine while there is work; the only place where threads meet the engine.

The engine belongs to the loop's thread alone. Other threads leave requests and aborts in an inbox and never wait for a
running step, so an event loop may call `submit` and `abort` directly.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from smelt.core.errors import EngineError, OverloadedError
from smelt.core.sampling import FinishReason
from smelt.engine.engine import Engine, EngineStats, failure_message
from smelt.engine.requests import Ended, EngineEvent, EngineRequest

_log = logging.getLogger(__name__)

OnEvent = Callable[[EngineEvent], None]


class EngineLoop:
    """Runs `engine` until `close`.

    Every request that `submit` admitted gets its events in order, called on the loop's thread, and exactly one Ended,
    the last. A callback that raises ends its own request (ABORT) and hears only that Ended.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = threading.Condition()  # guards what follows
        self._inbox: list[EngineRequest] = []
        self._aborts: list[str] = []
        self._callbacks: dict[str, OnEvent] = {}  # one entry per admitted request, until its Ended is delivered
        self._closing = False
        self._deaf: set[str] = set()  # requests whose callback raised; loop thread only
        self._thread = threading.Thread(target=self._run, name="smelt-engine", daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest, on_event: OnEvent) -> None:
        """Admit a request. `on_event` is called on the loop's thread and should return at once.

        Raises what `Engine.add` raises, in the calling thread, and EngineError after `close`.
        """
        self._engine.check(request)
        with self._wake:
            if self._closing:
                raise EngineError("the engine is shutting down")
            if request.id in self._callbacks:
                raise EngineError(f"request id {request.id!r} is already in use")
            if len(self._callbacks) >= self._engine.max_live:
                raise OverloadedError(
                    f"{self._engine.max_live} requests are running or waiting, which is the limit; retry later"
                )
            self._callbacks[request.id] = on_event
            self._inbox.append(request)
            self._wake.notify()

    def abort(self, request_id: str) -> None:
        """End a request with reason ABORT before the next step; does nothing if it has ended."""
        with self._wake:
            if request_id in self._callbacks:
                self._aborts.append(request_id)
                self._wake.notify()

    def stats(self) -> EngineStats:
        """The engine's numbers; safe from any thread."""
        return self._engine.stats()

    def close(self) -> None:
        """Abort what lives, deliver the Ended events, stop the thread. Waits for the step under way; idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while self._read_inbox():
            self._deliver(self._step())
        for request_id in list(self._callbacks):  # nothing is admitted any more
            self._engine.abort(request_id)
        self._deliver(self._step())

    def _read_inbox(self) -> bool:
        """Wait for work and hand it to the engine; False when the loop closes."""
        with self._wake:
            while not (self._closing or self._inbox or self._aborts or self._engine.has_work):
                self._wake.wait()
            requests, self._inbox = self._inbox, []
            aborts, self._aborts = self._aborts, []
            closing = self._closing
        for request in requests:
            try:
                self._engine.add(request)
            except Exception as error:  # `submit` checked all of it; a client must not wait for ever if that was wrong
                _log.exception("request %s was admitted and then refused", request.id)
                self._deliver([Ended(request.id, FinishReason.ERROR, error=failure_message(error))])
        for request_id in aborts:
            self._engine.abort(request_id)
        return not closing

    def _step(self) -> list[EngineEvent]:
        try:
            return self._engine.step()
        except Exception as error:
            _log.exception("the engine failed; every request ends")
            return self._engine.fail_all(error)

    def _deliver(self, events: list[EngineEvent]) -> None:
        for event in events:
            request_id = event.request_id
            is_last = isinstance(event, Ended)
            if request_id in self._deaf and not is_last:
                continue
            on_event = self._callbacks[request_id]
            if is_last:
                with self._wake:
                    del self._callbacks[request_id]
                self._deaf.discard(request_id)
            try:
                on_event(event)
            except Exception:
                _log.exception("the callback of request %s raised; the request ends", request_id)
                if not is_last:
                    self._deaf.add(request_id)
                    self._engine.abort(request_id)
