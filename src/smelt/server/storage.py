"""The store as routes use it: away from the event loop, opened when it is first needed, never in an answer's way.

SQLAlchemy costs 0.13 s and 26 MB; a server that keeps nothing and finds no store never imports it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from smelt.core.errors import StoreError
from smelt.server.metrics import Metrics
from smelt.server.middleware import error_log
from smelt.server.settings import Settings
from smelt.store.location import locate

if TYPE_CHECKING:
    from smelt.store.completions import StoredCompletion
    from smelt.store.database import Database

T = TypeVar("T")
KEEP_WAIT_S = 2.0  # an answer waits this long for its row; a slower one is finished behind the answer
MAX_WAITING = 256  # answers on their way into the store: a hanging disk must not fill the memory
NUM_THREADS = 4
_DAY_NS = 86_400 * 10**9


class Storage:
    """One server's store. `enabled` is False where the settings say "none": then there is nothing to find in it."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._location = locate(settings.store)
        self._max_bytes = settings.store_max_mib * 2**20
        self._keep_ns = settings.store_days * _DAY_NS
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="store")
        self._opening = threading.Lock()
        self._database: Database | None = None
        self._num_waiting = 0

    @property
    def enabled(self) -> bool:
        """Whether answers can be kept."""
        return self._location is not None

    async def run(self, work: Callable[[Database], T], *, absent: T) -> T:
        """`work` in a thread; `absent` where there is no store yet, which is not made for it. Raises StoreError."""
        if self._location is None or not (self._database or self._location.exists):
            return absent
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(self._open()))

    async def keep(self, make: Callable[[], StoredCompletion], *, request_id: str, within_s: float) -> None:
        """Store what `make` gives. Never raises: the answer is made, and is given whatever happens here.

        Returns when the row is committed, or after `within_s` and at most KEEP_WAIT_S, or when it failed, which is
        logged and counted.
        """
        if self._num_waiting >= MAX_WAITING:
            return self._note(request_id, StoreError(f"{MAX_WAITING} answers are waiting to be stored", reason="busy"))
        self._num_waiting += 1
        kept = asyncio.get_running_loop().run_in_executor(self._threads, self._keep, make, request_id)
        kept.add_done_callback(self._leave)
        await asyncio.wait({kept}, timeout=max(0.0, min(KEEP_WAIT_S, within_s)))

    def close(self) -> None:
        """Finish what is waiting, then close the database."""
        self._threads.shutdown(wait=True)
        if self._database is not None:
            self._database.close()

    def _leave(self, _: object) -> None:
        self._num_waiting -= 1

    def _keep(self, make: Callable[[], StoredCompletion], request_id: str) -> None:
        from smelt.store.completions import Completions

        expired_before_ns = time.time_ns() - self._keep_ns if self._keep_ns else 0
        try:
            Completions(self._open()).add(make(), expired_before_ns=expired_before_ns)
        except Exception as error:
            self._note(request_id, error)
        else:
            self._metrics.stored.labels("stored").inc()

    def _note(self, request_id: str, error: Exception) -> None:
        """An expected failure is a line in the log, another its traceback."""
        is_known = isinstance(error, StoreError)
        self._metrics.stored.labels(error.reason if isinstance(error, StoreError) else "failed").inc()
        error_log.error(
            "the answer of request %s is not stored: %s", request_id, error, exc_info=None if is_known else error
        )

    def _open(self) -> Database:
        from smelt.store.database import Database

        with self._opening:
            if self._database is None:
                assert self._location is not None
                self._database = Database.open(self._location, max_bytes=self._max_bytes)
            return self._database
