"""The teacher cache on disk: one shard of plain records per chunk of the data stream, beside it an index in JSON.

    <folder>/cache.json            what it was made from: teacher, stream, settings
    <folder>/chunk-000012.npy      a record per learned token, in order: ids, weights, rest
    <folder>/chunk-000012.json     per batch: digest, first record, count, entropy; written last, so it says "whole"

A batch is found by its content, so a cache serves every run that shows its student the same batches, in any order.
numpy's .npy is memory-mapped, says what it holds and holds no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.data.batches import Batch

FORMAT = 1
LARGEST_SHORT_ID = 2**16 - 2  # the id after it marks a place without a token
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What is kept of each distribution.

    "sampled": k ids drawn from the teacher's distribution to the power of `proposal` (1: itself), each weighing
    p / (proposal * k), equal ids merged: unbiased. "top_k": the k likeliest, and the rest's mass. temperature: softens
    the teacher before anything is kept, and the student in the loss.
    """

    method: Literal["sampled", "top_k"] = "sampled"
    k: int = 12
    temperature: float = 1.0
    proposal: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0 or self.proposal <= 0:
            raise InvalidRequestError("a teacher cache needs k of at least 1, temperature and proposal above 0")


@dataclass(frozen=True, slots=True)
class Kept:
    """Records of one batch: ids [N, k] (-1: none), weights [N, k], rest [N]; the teacher's summed entropy in nats.

    Weights of drawn ids are stored times k: with proposal 1 they are counts, which float16 holds exactly. Of the top k
    and the rest logarithms are stored: reverse KL asks how unlikely an unlikely id is, and probabilities end at 6e-8.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    rest: NDArray[np.float32]
    entropy: float


def record_dtype(settings: CacheSettings, vocab_len: int) -> np.dtype[Any]:
    """Bytes of one learned token: 48 for 12 drawn ids of a vocabulary below 65,535."""
    id_type = "<u2" if vocab_len <= LARGEST_SHORT_ID else "<u4"
    fields: list[Any] = [("ids", id_type, (settings.k,)), ("weights", "<f2", (settings.k,))]
    return np.dtype([*fields, ("rest", "<f2")] if settings.method == "top_k" else fields)


def batch_digest(batch: Batch) -> str:
    """What names a batch: everything a teacher's answer depends on, and which tokens are learned."""
    digest = hashlib.blake2b(repr(batch.inputs.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(batch.inputs).data)
    digest.update(np.ascontiguousarray(batch.targets).data)
    for told in (batch.segment_ids, batch.privileges):
        if told is not None:
            digest.update(np.ascontiguousarray(told).data)
    return digest.hexdigest()


def pack(kept: Kept, dtype: np.dtype[Any]) -> Array:
    """Records [N]."""
    records = np.zeros(len(kept.ids), dtype=dtype)
    none = np.iinfo(dtype["ids"].base).max
    records["ids"] = np.where(kept.ids < 0, none, kept.ids)
    records["weights"] = kept.weights
    if "rest" in (dtype.names or ()):
        records["rest"] = kept.rest
    return records


def unpack(records: Array) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None]:
    """ids (-1: none), weights, and rest where it is kept."""
    none = np.iinfo(records.dtype["ids"].base).max
    ids = records["ids"].astype(np.int64)
    ids[ids == none] = -1
    rest = records["rest"].astype(np.float32) if "rest" in (records.dtype.names or ()) else None
    return ids, records["weights"].astype(np.float32), rest


def write_chunk(folder: Path, number: int, digests: Sequence[str], kept: Sequence[Kept], dtype: np.dtype[Any]) -> int:
    """Both files of a chunk, the index last; returns the shard's bytes."""
    parts = [pack(one, dtype) for one in kept]
    records = np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
    shard = folder / f"chunk-{number:06d}.npy"
    staging = shard.with_suffix(".part")
    with staging.open("wb") as file:
        np.lib.format.write_array(file, records, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(shard)
    starts = np.cumsum([0, *(len(part) for part in parts)])
    entries = [
        {"digest": digest, "first": int(first), "count": len(one.ids), "entropy": one.entropy}
        for digest, first, one in zip(digests, starts[:-1], kept, strict=True)
    ]
    write_json(shard.with_suffix(".json"), {"crc32": zlib.crc32(records.view(np.uint8).data), "batches": entries})
    return shard.stat().st_size


def read_chunk(shard: Path) -> Array:
    """A chunk's records, memory-mapped and checked. Raises CheckpointError for a damaged shard."""
    try:
        records: Array = np.load(shard, mmap_mode="r", allow_pickle=False)
        sum_found = zlib.crc32(np.ascontiguousarray(records).view(np.uint8).data)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{shard.name}: not a readable shard of a teacher cache") from error
    if sum_found != json.loads(shard.with_suffix(".json").read_text())["crc32"]:
        raise CheckpointError(f"{shard.name}: its checksum is wrong; remove it and its .json, and build the rest again")
    return records


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    staging = path.with_suffix(path.suffix + ".part")
    with staging.open("w") as file:
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


def cache_name(teacher: str, stream: str, settings: CacheSettings, vocab_len: int) -> str:
    """A folder name that changes with anything the content depends on."""
    shape = {"format": FORMAT, "teacher": teacher, "stream": stream, "vocab_len": vocab_len, **asdict(settings)}
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
