"""Where a run stands, on disk: safetensors and JSON in a folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smelt.checkpoint.safetensors import SafetensorsFile, write_file
from smelt.core.errors import CheckpointError

_FORMAT = 1


@dataclass(kw_only=True)
class Position:
    """What a resumed run must know besides tensors.

    `stage`, `chunk`, `batch`: the next batch of the data stream, over all processes. `plan`: the schedule as settled.
    `elapsed_s`: wall time of all earlier pieces.
    """

    step: int = 0
    stage: int = 0
    chunk: int = 0
    batch: int = 0
    num_tokens: int = 0
    elapsed_s: float = 0.0
    plan: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, tensors: Mapping[str, Tensor], position: Position, identity: str) -> None:
    """Write `folder`/state-<step>, then drop the older ones: a kill at any moment leaves a whole one.

    tensors: float32, on the CPU. Raises CheckpointError, with the older ones untouched, where it cannot be written.
    """
    final = folder / f"state-{position.step:08d}"
    if final.exists():  # the same step of the same run: the same state
        return
    staging = folder / f".staging-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop(folder.glob(".staging-*"))
        staging.mkdir()
        write_file(staging / "state.safetensors", {name: tensor.numpy() for name, tensor in tensors.items()}, "F32")
        document = {"format": _FORMAT, "identity": identity, "position": asdict(position)}
        with (staging / "state.json").open("w") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        staging.rename(final)
        _flush_folder(folder)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise CheckpointError(_not_written(folder, tensors, position.step, error)) from error
    _drop(sorted(folder.glob("state-*"))[:-1])


def load(folder: Path, identity: str) -> tuple[dict[str, Tensor], Position] | None:
    """The latest state under `folder`, or None. Raises CheckpointError when another run's state lies there."""
    found = sorted(folder.glob("state-*"))
    if not found:
        return None
    document = json.loads((found[-1] / "state.json").read_text())
    if document.get("format") != _FORMAT or document.get("identity") != identity:
        raise CheckpointError(
            f"{found[-1].name} belongs to another run: sought {identity[:12]}, "
            f"found {str(document.get('identity'))[:12]}; choose another folder or remove it"
        )
    file = SafetensorsFile(found[-1] / "state.safetensors")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in file.items()}
    return tensors, Position(**document["position"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process from training in the same folder. Raises CheckpointError when one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            # The system releases it when this process ends, also by a kill; forked children (which prepare data and
            # may outlive it for a moment) do not hold it, as they would with flock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise CheckpointError("another process trains in this folder; wait for it, or choose another") from None
        yield


def _drop(folders: Iterator[Path] | list[Path]) -> None:
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    """Make the rename itself last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(folder: Path, tensors: Mapping[str, Tensor], step: int, error: OSError) -> str:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
    free = shutil.disk_usage(folder).free / 1e6
    older = [path.name for path in sorted(folder.glob("state-*"))]
    kept = f"{older[-1]} is whole" if older else "there is none before it"
    return (
        f"the checkpoint of step {step} could not be written: {error.strerror or error}; it needs {needed:.1f} MB, "
        f"{free:.1f} MB are free; {kept}; make room and call again"
    )
