"""What a walk holds outside the model: hidden states between layers, and finished layers on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn

from smelt.checkpoint.safetensors import SafetensorsFile
from smelt.core.errors import CheckpointError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.objectives import batch_entered


def identity_of(model: Decoder, *parts: str) -> str:
    """sha256 of the model, its weights included, and of everything else that decides an outcome."""
    digest = hashlib.sha256(json.dumps([asdict(model.config), *parts], sort_keys=True).encode())
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(parameter.detach().cpu().numpy()).data)
    return digest.hexdigest()


class HiddenStates:
    """What enters the next layer, batch by batch, [B, T, H] each; on the CPU, in memory or in a file."""

    def __init__(self, parts: Sequence[Tensor], device: torch.device, file: Path | None) -> None:
        self.device = device
        self._parts, self._file = parts, file

    @classmethod
    def of(cls, model: Decoder, batches: Sequence[Batch], scratch: Path, memory_bytes: int) -> Self:
        """What enters the first layer. Raises CheckpointError where the disk has no room for the file."""
        like = model.model.embed_tokens.weight
        width = model.config.hidden_size
        sizes = [batch.inputs.size * width for batch in batches]
        total, item = sum(sizes), like.element_size()
        file = scratch / "hidden.bin" if total * item > memory_bytes else None
        if file is None:
            whole = torch.empty(total, dtype=like.dtype)
        else:
            _allocate(file, total * item)
            whole = torch.from_file(str(file), shared=True, size=total, dtype=like.dtype)
        shapes = [(*batch.inputs.shape, width) for batch in batches]
        parts = [part.view(shape) for part, shape in zip(torch.split(whole, sizes), shapes, strict=True)]
        states = cls(parts, like.device, file)
        for number, batch in enumerate(batches):
            states.put(number, batch_entered(model, batch, like.device)[0])
        return states

    def get(self, number: int) -> Tensor:
        """Of batch `number`, on the model's device; not to be changed."""
        return self._parts[number].to(self.device)

    def put(self, number: int, x_BTH: Tensor) -> None:
        """In place of what was there."""
        self._parts[number].copy_(x_BTH)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts = ()
        if self._file is not None:
            self._file.unlink(missing_ok=True)


class Finished:
    """Layers that are done: `layer-0000.safetensors` and on, each whole or not there."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = folder, identity

    @torch.no_grad()
    def restore(self, index: int, layer: nn.Module) -> bool:
        """Give the layer its finished weights; False where it is not finished.

        Raises CheckpointError for a file of another walk.
        """
        path = self._path(index)
        if not path.is_file():
            return False
        file = SafetensorsFile(path)
        if (found := file.metadata.get("identity")) != self._identity:
            raise CheckpointError(
                f"{path.name} belongs to another walk: sought {self._identity[:12]}, found {str(found)[:12]}; "
                "choose another scratch folder or empty this one"
            )
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.from_numpy(file.stored(f"weights.{name}").copy()))
        return True

    def store(self, index: int, layer: nn.Module, kept: Mapping[str, NDArray[Any]]) -> None:
        """Write the layer's weights and what is kept beside them. Raises CheckpointError where there is no room."""
        arrays = {f"weights.{name}": parameter.detach().cpu().numpy() for name, parameter in layer.named_parameters()}
        arrays |= {f"kept.{name}": np.ascontiguousarray(array) for name, array in kept.items()}
        path = self._path(index)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(save(arrays, metadata={"identity": self._identity}))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise CheckpointError(_no_room(path, sum(array.nbytes for array in arrays.values()), error)) from error

    def kept(self, index: int) -> dict[str, NDArray[Any]]:
        """What was kept beside a finished layer, mapped."""
        file = SafetensorsFile(self._path(index))
        return {name.removeprefix("kept."): file.stored(name) for name in file if name.startswith("kept.")}

    def _path(self, index: int) -> Path:
        return self._folder / f"layer-{index:04d}.safetensors"


def _allocate(path: Path, num_bytes: int) -> None:
    """Room for the whole file now: a mapped file that outgrows its disk would end the process without a word."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise CheckpointError(_no_room(path, num_bytes, error)) from error


def _no_room(path: Path, num_bytes: int, error: OSError) -> str:
    free = shutil.disk_usage(path.parent).free / 1e6
    return (
        f"{path.name} could not be written: {error.strerror or error}; it needs {num_bytes / 1e6:.1f} MB, "
        f"{free:.1f} MB are free; what was finished before is kept: make room and call again"
    )
