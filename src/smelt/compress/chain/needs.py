"""What a stage takes, told before it starts: refused where it cannot fit, explained where it did not after all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smelt.compress.stage import Needs, Stage
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError, TrainingError
from smelt.generate.options import free_memory_bytes

_COPIES = 4  # float32 weights held at once by a stage that says nothing: source, result, a layer's work, a read
_DISK_COPIES = 3  # scratch, result, and the result while it is written
_WORDS_OF_TORCH = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")


def needs_of(stage: Stage, config: DecoderConfig) -> Needs:
    """The stage's own estimate, or a few copies of the weights."""
    told = getattr(stage, "needs", None)
    if told is not None:
        needs: Needs = told(config)
        return needs
    whole = 4 * config.num_parameters
    return Needs(memory_bytes=_COPIES * whole, disk_bytes=_DISK_COPIES * whole)


def check_room(name: str, needs: Needs, folder: Path) -> None:
    """Raises CheckpointError where memory or disk cannot hold the stage; nothing was begun then."""
    memory, disk = free_memory_bytes(), shutil.disk_usage(folder).free
    if needs.memory_bytes > memory:
        raise CheckpointError(
            f"{name} needs about {_size(needs.memory_bytes)} of memory, {_size(memory)} are free: end other processes, "
            "or take a smaller model, batch or row; what is finished is kept"
        )
    if needs.disk_bytes > disk:
        raise CheckpointError(
            f"{name} needs about {_size(needs.disk_bytes)} of disk, {_size(disk)} are free: make room and call again; "
            "what is finished is kept"
        )


@contextmanager
def explained(name: str, needs: Needs, folder: Path) -> Iterator[None]:
    """Memory or disk that ran out within, as a sentence; the stage's scratch is in order, the next call goes on.

    Raises CheckpointError for the disk and TrainingError for memory.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free
        raise CheckpointError(
            f"{name}: the disk is full; it needs about {_size(needs.disk_bytes)}, {_size(free)} are free. What was "
            "finished is kept: make room and call again"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(word in str(error).lower() for word in _WORDS_OF_TORCH):
            raise
        raise TrainingError(
            f"{name}: out of memory; it needs about {_size(needs.memory_bytes)}, {_size(free_memory_bytes())} are "
            "free. What was finished is kept: end other processes and call again"
        ) from error


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
