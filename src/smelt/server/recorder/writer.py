"""Lines to disk: whole or not at all, apart from the requests they came from, in files that are changed when full."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smelt.server.errors import StartError

_MAX_WAITING = 512  # exchanges; more mean that the disk cannot follow, and traffic must not wait for it


class LineWriter:
    """Appends JSON lines to `path`; readable by its owner only.

    A line is one write to a file opened for appending, then synced: a crash leaves at most the beginning of the last
    line, which the next start cuts off. Above `rotate_bytes` the file becomes `<stem>-0001<suffix>` and a new one
    begins. Raises StartError where the file cannot be written, or another recorder writes it.
    """

    def __init__(self, path: Path, rotate_bytes: int) -> None:
        self.path, self.rotate_bytes = path, rotate_bytes
        self.num_lines = 0
        self._fd = self._open()

    def write(self, line: dict[str, Any]) -> None:
        """Append one line. Raises OSError, after which the file ends where the last whole line does."""
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"
        size = os.fstat(self._fd).st_size
        if size and size + len(data) > self.rotate_bytes:
            self._rotate()
            size = 0
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError("the disk is full")
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        self.num_lines += 1

    def close(self) -> None:
        """Give the file up; an empty one is removed."""
        if os.fstat(self._fd).st_size == 0:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise StartError(f"--out: cannot write {self.path.name} ({error.strerror}): choose another file") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise StartError(f"--out: another recorder writes {self.path.name}: choose another file") from None
        _cut_torn_line(fd)
        return fd

    def _rotate(self) -> None:
        number = 1
        while (full := self.path.with_name(f"{self.path.stem}-{number:04d}{self.path.suffix}")).exists():
            number += 1
        self.path.rename(full)
        os.close(self._fd)
        self._fd = self._open()


def _cut_torn_line(fd: int) -> None:
    """Whatever stands behind the last line break was never finished."""
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - 65536)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            os.ftruncate(fd, start + at + 1)
            return
        end = start
    os.ftruncate(fd, 0)


class Background:
    """Work for one thread, in order. What it cannot take in time is left out and counted, never waited for."""

    def __init__(self, work: Callable[[Any], None], counts: Counter[str]) -> None:
        self._work, self._counts = work, counts
        self._waiting: queue.Queue[Any] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        """Hand over, or count as left out."""
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._counts["disk too slow"] += 1

    def close(self) -> None:
        """Finish what was handed over."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._work(item)
