"""The weights of a folder, one file or many, as one lazily read mapping."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smelt.checkpoint import strict_json
from smelt.checkpoint.safetensors import ITEM_BYTES, FloatDtype, SafetensorsFile, StoredDtype, write_file
from smelt.core.errors import CheckpointError, UnsupportedError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_SAMPLE_BYTES = 64


class Weights(Mapping[str, NDArray[np.float32]]):
    """Tensor name -> float32 array. Nothing is kept: an access reads (F32: maps) the tensor anew."""

    def __init__(self, files: Mapping[str, SafetensorsFile]) -> None:
        self._files = files  # by tensor name

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._files[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header alone."""
        return self._files[name].entries[name].shape

    def dtype(self, name: str) -> str:
        """Stored dtype of a tensor, by the format's name."""
        return self._files[name].entries[name].dtype

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor as the file holds it: whole numbers, and BF16 as uint16."""
        return self._files[name].stored(name)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same bytes."""
        first, second = self._files[one].stored(one), self._files[other].stored(other)
        return self.dtype(one) == self.dtype(other) and np.array_equal(first, second)

    def without(self, names: frozenset[str]) -> Weights:
        """The same weights less some."""
        return Weights({name: file for name, file in self._files.items() if name not in names})

    def feed(self, digest: hashlib._Hash) -> None:
        """Digest names, dtypes, shapes and a sample of every tensor's bytes."""
        for name in sorted(self._files):
            file = self._files[name]
            digest.update(f"{name} {self.dtype(name)} {self.shape(name)}\n".encode())
            digest.update(file.sample(name, _SAMPLE_BYTES))


class Selection(Mapping[str, NDArray[Any]]):
    """Some tensors of a mapping in a given order, still read on access, so that saving holds one at a time."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], names: Sequence[str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_weights(folder: Path) -> Weights:
    """The folder's model.safetensors, or the shards its index names.

    Raises UnsupportedError for pickled weights, CheckpointError for anything missing or malformed.
    """
    if (folder / SINGLE).is_file():
        file = SafetensorsFile(folder / SINGLE)
        return Weights(dict.fromkeys(file, file))
    if (folder / INDEX).is_file():
        return _open_shards(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise UnsupportedError(
            f"{pickles[0]}: pickled weights can run code when loaded and are never read; "
            f"sought {SINGLE} or {INDEX}: convert the model to safetensors first"
        )
    raise CheckpointError(f"no weights: sought {SINGLE} or {INDEX}, found neither")


def _open_shards(folder: Path) -> Weights:
    weight_map = strict_json.read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX}: sought weight_map, an object of tensor name -> file name")
    shards: dict[str, SafetensorsFile] = {}
    for shard in dict.fromkeys(weight_map.values()):
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(f"{INDEX}: {shard!r:.80} is no plain .safetensors file name")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{INDEX}: names {shard}, which is not in the folder: download cut short?")
        shards[shard] = SafetensorsFile(folder / shard)
    held: dict[str, str] = {}
    for shard, file in shards.items():
        for name in file:
            if name in held:
                raise CheckpointError(f"tensor {name[:200]!r} is in both {held[name]} and {shard}")
            held[name] = shard
    for name, shard in weight_map.items():
        if held.get(name) != shard:
            raise CheckpointError(f"{INDEX}: says tensor {name[:200]!r} is in {shard}, which does not hold it")
    return Weights({name: shards[shard] for name, shard in held.items()})


def write_weights(
    folder: Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    dtype: FloatDtype,
    max_shard_bytes: int,
    dtypes: Mapping[str, StoredDtype] | None = None,
) -> None:
    """Write model.safetensors, or numbered shards of at most `max_shard_bytes` (or one tensor) and their index.

    `dtypes` names the tensors that are not stored as `dtype`.
    """
    shards: list[list[str]] = [[]]
    filled = total = 0
    for name in tensors:
        num_bytes = tensors[name].size * ITEM_BYTES[(dtypes or {}).get(name, dtype)]
        if shards[-1] and filled + num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += num_bytes
        total += num_bytes
    if len(shards) == 1:
        write_file(folder / SINGLE, tensors, dtype, dtypes=dtypes)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        shard = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / shard, Selection(tensors, names), dtype, dtypes=dtypes)
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_bytes(strict_json.dump(index))
