"""The safetensors format, read without trust and written without surprise.

A file is an 8-byte little-endian header length N, N bytes of JSON (`name -> dtype, shape, data_offsets`, and an
optional `__metadata__` of strings), then the tensors' bytes. Everything the header claims is checked against
the file's length before any byte of data is touched; the data itself is mapped, never copied, until asked for.
Format: the README of the safetensors project.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smelt.checkpoint import strict_json
from smelt.core.errors import CheckpointError, UnsupportedError

FloatDtype = Literal["F32", "BF16", "F16"]
StoredDtype = Literal["F32", "BF16", "F16", "I8", "I32", "I64"]

# A hundred thousand tensors need about 13 MB; a larger header is an attack on whoever parses it.
MAX_HEADER_BYTES = 16 << 20
_MAX_DIMENSIONS = 8
_STORED_AS: dict[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
    "BOOL": "u1",
}  # fmt: skip
ITEM_BYTES = {name: np.dtype(code).itemsize for name, code in _STORED_AS.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: its dtype by the format's name, its shape, and its bytes [begin, end) of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(Mapping[str, NDArray[np.float32]]):
    """A checked, mapped file. Indexing gives a tensor in float32.

    An F32 tensor is a read-only view of the mapping where it is aligned; BF16 and F16 are converted anew on
    every access, so keep the result. Raises CheckpointError for a file that lies about itself and
    UnsupportedError for dtypes that are no plain floats.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        data, header_len = _map(path)
        header_bytes = data[8 : 8 + header_len].tobytes()
        header = strict_json.parse_object(header_bytes, f"{self.name}: header")
        self.metadata = _metadata(header.pop("__metadata__", {}), self.name)
        self.entries = {key: _entry(key, value, self.name) for key, value in header.items()}
        self._data = data[8 + header_len :]
        _check_layout(self.entries, len(self._data), self.name)
        self.header_bytes = header_bytes

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return len(self._data)

    def stored(self, name: str) -> NDArray[Any]:
        """The tensor as the file holds it, mapped; BF16 as uint16, 8-bit floats and BOOL as uint8."""
        entry = self.entries[name]
        return self._data[entry.begin : entry.end].view(_STORED_AS[entry.dtype]).reshape(entry.shape)

    def sample(self, name: str, num_bytes: int) -> bytes:
        """Up to `num_bytes` bytes from the middle of a tensor: enough to notice that it was trained."""
        entry = self.entries[name]
        middle = entry.begin + max(0, (entry.end - entry.begin - num_bytes) // 2)
        return self._data[middle : min(middle + num_bytes, entry.end)].tobytes()

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        stored, dtype = self.stored(name), self.entries[name].dtype
        if dtype not in ("F32", "BF16", "F16"):
            raise UnsupportedError(f"{self.name}: tensor {name!r} has dtype {dtype}; F32, BF16 and F16 are supported")
        return decode(stored, dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _map(path: Path) -> tuple[NDArray[np.uint8], int]:
    """The mapped file and its header's length, which is known to lie within the file."""
    try:
        file_len = path.stat().st_size
        if file_len < 10:
            raise CheckpointError(f"{path.name}: {file_len} bytes, too short for a safetensors file")
        data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error.strerror}") from None
    if data[:20].tobytes() == b"version https://git-":
        raise CheckpointError(f"{path.name}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    header_len = int.from_bytes(data[:8].tobytes(), "little")  # a Python integer: no sum below can overflow
    if header_len > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path.name}: claims a header of {header_len} bytes, at most {MAX_HEADER_BYTES}")
    if 8 + header_len > len(data):
        raise CheckpointError(f"{path.name}: claims a header of {header_len} bytes in a file of {len(data)}")
    if data[8:9].tobytes() != b"{":
        raise CheckpointError(f"{path.name}: the header does not begin with '{{': not a safetensors file")
    return data, header_len


def _metadata(value: Any, file: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{file}: __metadata__ must map strings to strings")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(name: str, value: Any, file: str) -> TensorEntry:
    where = f"{file}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: sought exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in ITEM_BYTES if isinstance(dtype, str) else True:
        raise UnsupportedError(f"{where}: dtype {str(dtype)[:40]!r} is unknown; known: {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_whole, shape)):
        raise CheckpointError(f"{where}: shape must be at most {_MAX_DIMENSIONS} whole numbers >= 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise CheckpointError(f"{where}: data_offsets must be two whole numbers >= 0")
    begin, end = offsets
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != num_bytes:
        raise CheckpointError(f"{where}: {dtype} {shape} needs {num_bytes} bytes, data_offsets give {end - begin}")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _check_layout(entries: Mapping[str, TensorEntry], data_len: int, file: str) -> None:
    """The tensors must tile the data exactly: no byte twice, none unused, none outside."""
    at, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.end > data_len:
            raise CheckpointError(f"{file}: tensor {name[:200]!r} ends at byte {entry.end} of {data_len}: cut short?")
        if entry.begin != at:
            what = "overlaps" if entry.begin < at else "leaves a gap after"
            raise CheckpointError(f"{file}: tensor {name[:200]!r} {what} {before}")
        at, before = entry.end, f"{name[:200]!r}"
    if at != data_len:
        raise CheckpointError(f"{file}: {data_len - at} bytes after the last tensor belong to none")


def decode(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """float32 of an array as the format stores it: F32, F16, or BF16's bits; a view where it can be."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.require(stored, dtype=np.float32, requirements=["C", "A"])


# ------------------------------------------------------------------------------------------------ writing


def encode(array: ArrayLike, dtype: FloatDtype, name: str = "tensor") -> NDArray[Any]:
    """`array` as the format stores it: float32, float16, or bfloat16 bits in uint16 (round to nearest, ties to even).

    Raises CheckpointError when a finite value would become infinite.
    """
    values = np.ascontiguousarray(array, dtype="<f4")
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):
            narrow = values.astype("<f2")
        overflowed = bool(np.any(np.isinf(narrow) & np.isfinite(values)))
    else:
        bits = values.view(np.uint32)
        rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")
        # A NaN whose payload sits in the low bits would round to infinity: set the quiet bit instead.
        narrow = np.where(np.isnan(values), (bits >> 16).astype("<u2") | np.uint16(0x40), rounded)
        overflowed = bool(np.any(((narrow & 0x7FFF) == 0x7F80) & np.isfinite(values)))
    if overflowed:
        raise CheckpointError(f"{name}: a value is too large for {dtype}; save it as F32 or BF16")
    return narrow


_SAFE_NAME = re.compile(r"[\x20-\x7e]{1,512}")


def write_file(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    dtype: FloatDtype,
    metadata: Mapping[str, str] | None = None,
    *,
    dtypes: Mapping[str, StoredDtype] | None = None,
) -> None:
    """Write one file and flush it to disk; tensors are read one by one, in order, so lazy mappings stay lazy.

    `dtypes` names the tensors that are not stored as `dtype`; whole numbers are stored as they are.
    """
    chosen: Mapping[str, StoredDtype] = dtypes or {}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, array in tensors.items():
        if not _SAFE_NAME.fullmatch(name) or name == "__metadata__":
            raise CheckpointError(f"{name[:200]!r} cannot name a tensor: printable ASCII, at most 512 characters")
        stored_as = chosen.get(name, dtype)
        end = at + array.size * ITEM_BYTES[stored_as]
        header[name] = {"dtype": stored_as, "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = strict_json.compact(header)
    text += b" " * (-len(text) % 8)  # data stays aligned for the mapping reader
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, array in tensors.items():
            _write_rows(file, array, chosen.get(name, dtype), name)
        file.flush()
        os.fsync(file.fileno())


def _write_rows(file: IO[bytes], array: NDArray[Any], dtype: StoredDtype, name: str) -> None:
    """A few million values at a time, so that saving a large embedding does not double its memory."""
    flat = np.asarray(array).reshape(-1)
    if not (dtype == "F32" or dtype == "BF16" or dtype == "F16"):
        if flat.dtype != np.dtype(_STORED_AS[dtype]):
            raise CheckpointError(f"{name}: {flat.dtype} cannot be stored as {dtype}")
        file.write(flat.tobytes())
        return
    for start in range(0, flat.size, 1 << 22):
        file.write(encode(flat[start : start + (1 << 22)], dtype, name).tobytes())
