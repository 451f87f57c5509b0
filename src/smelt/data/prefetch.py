"""Chunks of a stream made ahead in other processes, so that the trainer waits for none.

Threads would not do: rendering holds the interpreter's lock for milliseconds, and every operation of a training
thread would wait for it.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Literal, Protocol, Self

from smelt.core.errors import DataError
from smelt.data.batches import Batch


class Chunks(Protocol):
    """A stream: batches by chunk number, always the same for the same number."""

    def chunk(self, number: int) -> list[Batch]:
        """Chunk `number` (0, 1, ...)."""
        ...


class Prefetched:
    """`stream` with its next chunks under way in `workers` processes; the same batches in the same order.

    Each worker makes every `workers`-th chunk and holds one finished. Processes start with the first chunk and end
    with `close`, with the `with` block, or with this process, however that ends. `waited_s`: seconds spent waiting.
    method: "fork" starts at once and shares the stream's memory, but is not everywhere; "spawn" sends the stream.
    """

    def __init__(self, stream: Chunks, workers: int = 1, method: Literal["fork", "spawn"] | None = None) -> None:
        self.stream, self.num_workers = stream, workers
        self.waited_s = 0.0
        self._method = method or ("fork" if sys.platform == "linux" else "spawn")
        self._workers: list[_Worker] = []

    def chunk(self, number: int) -> list[Batch]:
        """Chunk `number`; any, but the one after the last is there soonest.

        Raises DataError when the worker died or failed, with its reason.
        """
        began = time.monotonic()
        if not self._workers:
            self._workers = [_Worker(self.stream, self._method) for _ in range(self.num_workers)]
        for ahead in range(self.num_workers):
            self._of(number + ahead).want(number + ahead)
        found = self._of(number).take(number)
        self._of(number).want(number + self.num_workers)
        self.waited_s += time.monotonic() - began
        return found

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> Self:
        """As it is."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        self.close()

    def _of(self, number: int) -> _Worker:
        return self._workers[number % self.num_workers]


class _Worker:
    """One process that answers chunk numbers with (number, batches or the text of an error), in order."""

    def __init__(self, stream: Chunks, method: str) -> None:
        context = multiprocessing.get_context(method)
        self._ours, theirs = context.Pipe()
        # A forked child holds our end too and closes it, or it would never see us go.
        inherited = self._ours if method == "fork" else None
        self._process = context.Process(target=_serve, args=(stream, theirs, inherited), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()
        self._wanted: deque[int] = deque()

    def want(self, number: int) -> None:
        """Ask for a chunk, once."""
        if number in self._wanted:
            return
        try:
            self._ours.send(number)
        except OSError:
            raise self._died() from None
        self._wanted.append(number)

    def take(self, number: int) -> list[Batch]:
        """The chunk asked for; answers before it are of no use any more."""
        while True:
            try:
                answered, found = self._ours.recv()
            except (EOFError, OSError):
                raise self._died() from None
            self._wanted.popleft()
            if answered != number:
                continue
            if isinstance(found, str):
                raise DataError(f"chunk {number} of the training data could not be made:\n{found}")
            batches: list[Batch] = found
            return batches

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.terminate()
        self._process.join()

    def _died(self) -> DataError:
        self._process.join(timeout=10)
        return DataError(
            f"the process that prepares training data died (exit code {self._process.exitcode}); "
            "out of memory, or killed? Run again: training goes on from its last checkpoint"
        )


def _serve(stream: Chunks, pipe: Connection, inherited: Connection | None) -> None:
    if inherited is not None:
        inherited.close()
    found: Sequence[Batch] | str
    try:
        while True:
            number = pipe.recv()
            try:
                found = stream.chunk(number)
            except Exception:
                found = traceback.format_exc()
            pipe.send((number, found))
    except (EOFError, OSError, KeyboardInterrupt):  # the trainer is gone
        return
