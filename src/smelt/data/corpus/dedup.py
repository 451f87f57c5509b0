"""Exact and near duplicates among any number of documents, in memory that does not grow with their length.

Near: MinHash (Broder 1997) over 5-grams of tokens (characters in Chinese), 20 bands of 6 rows, so that a pair of
Jaccard similarity 0.8 meets in a band with probability 0.998; a met pair counts only if the signatures agree on at
least 0.8. A document goes if it nears an *earlier kept* one: what goes always has a likeness that stays.
Signatures lie on the disk; in memory are one band (16 bytes a document) and the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smelt.data.corpus.tokens import U64, mix, ngrams

SHINGLE_LEN = 5
NUM_BANDS, BAND_ROWS = 20, 6
NUM_HASHES = NUM_BANDS * BAND_ROWS
THRESHOLD = 0.8
_LAGS = 12  # neighbours of a bucket compared with each document, besides the bucket's first ones
_FIRSTS = 4
_PAIRS_AT_ONCE = 1 << 16
_MULTIPLIERS = mix(np.arange(1, NUM_HASHES + 1, dtype=np.uint64)) | np.uint64(1)
_OFFSETS = mix(np.arange(10_001, 10_001 + NUM_HASHES, dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Indices of documents to drop: the same text as an earlier one, or near an earlier kept one."""

    exact: npt.NDArray[np.int64]
    near: npt.NDArray[np.int64]


def signature(hashes: U64) -> npt.NDArray[np.uint32]:
    """uint32 [120]: the MinHash of a text's token hashes. Texts under five tokens have one of their own tokens."""
    shingles = np.unique(ngrams(hashes, min(SHINGLE_LEN, max(1, len(hashes)))))
    found = np.full(NUM_HASHES, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(shingles), 4096):  # pieces that stay in the cache
        part = shingles[start : start + 4096]
        images = (part[None, :] * _MULTIPLIERS[:, None] + _OFFSETS[:, None]) >> np.uint64(32)
        np.minimum(found, images.min(axis=1).astype(np.uint32), out=found)
    return found


def band_keys(signatures: npt.NDArray[np.uint32]) -> U64:
    """uint64 [num_bands, num_documents] of signatures uint32 [num_documents, 120]: what near documents share."""
    rows = signatures.reshape(len(signatures), NUM_BANDS, BAND_ROWS).astype(np.uint64)
    keys = np.broadcast_to(np.arange(NUM_BANDS, dtype=np.uint64), rows.shape[:2])
    for row in range(BAND_ROWS):
        keys = mix(keys + rows[:, :, row] * np.uint64(_MULTIPLIERS[row]))
    return np.ascontiguousarray(keys.T)


def similarity(first: npt.NDArray[np.uint32], second: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """float64 [n]: the estimated Jaccard similarity of signatures uint32 [n, 120], row by row."""
    return np.asarray(np.mean(first == second, axis=1))


def find(digests: U64, bands: Sequence[Iterable[U64]], signatures: npt.NDArray[np.uint32]) -> Duplicates:
    """What to drop among documents in order.

    Args:
        digests: uint64 [n, 2], a hash of each text.
        bands: for each band, the parts of its keys in order of the documents; read one band at a time.
        signatures: uint32 [n, 120], may be a memory map.

    """
    exact = _repeats(digests)
    alive = np.ones(len(digests), bool)
    alive[exact] = False
    pairs = np.empty((0, 2), np.int64)
    for parts in bands:
        keys = np.concatenate([np.empty(0, np.uint64), *parts])
        pairs = np.unique(np.concatenate([pairs, _similar_pairs(keys, alive, signatures)]), axis=0)
    return Duplicates(exact, _greedy(pairs, alive))


def _repeats(digests: U64) -> npt.NDArray[np.int64]:
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal texts stay in order of the documents
    ordered = digests[order]
    same = np.all(ordered[1:] == ordered[:-1], axis=1)
    return np.sort(order[1:][same])


def _similar_pairs(
    keys: U64, alive: npt.NDArray[np.bool_], signatures: npt.NDArray[np.uint32]
) -> npt.NDArray[np.int64]:
    """int64 [m, 2]: (earlier, later) documents that share a key and whose signatures agree."""
    documents = np.flatnonzero(alive)
    order = documents[np.argsort(keys[documents], kind="stable")]
    ordered = keys[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    place = np.arange(len(order))
    first = np.maximum.accumulate(np.where(fresh, place, 0))
    found = []
    for lag in range(1, _LAGS + 1):
        later = place[place - lag >= first]
        found.append(np.stack([order[later - lag], order[later]], axis=1))
    for i in range(_FIRSTS):
        later = place[first + i < place - _LAGS]
        found.append(np.stack([order[first[later] + i], order[later]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    kept = [pairs[:0]]
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        kept.append(part[similarity(signatures[part[:, 0]], signatures[part[:, 1]]) >= THRESHOLD])
    return np.concatenate(kept)


def _greedy(pairs: npt.NDArray[np.int64], alive: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Later documents of a pair whose earlier one is kept; `pairs` are gone through in order of the later one."""
    keep = alive.copy()
    for earlier, later in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        if keep[earlier]:
            keep[later] = False
    return np.flatnonzero(alive & ~keep)


def open_signatures(path: Path, parts: Iterable[Path], num_documents: int) -> npt.NDArray[np.uint32]:
    """One memory map uint32 [num_documents, 120] at `path` out of the arrays of `parts`, in order."""
    if num_documents == 0:
        return np.empty((0, NUM_HASHES), np.uint32)
    whole = np.memmap(path, np.uint32, "w+", shape=(num_documents, NUM_HASHES))
    at = 0
    for part in parts:
        rows = np.load(part, mmap_mode="r")
        whole[at : at + len(rows)] = rows
        at += len(rows)
    whole.flush()
    return whole
