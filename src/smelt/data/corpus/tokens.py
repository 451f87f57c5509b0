"""Text as a row of 64-bit numbers, one per word or Chinese character: what duplicates and n-grams are found by.

A token is a run of letters and digits, or one Chinese (Japanese) character; case and full-width forms are folded,
all else separates. Everything is a numpy expression over code points: no Python loop over words.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
_STEP = np.uint64(0xD6E8FEB86659FD93)
_SEPARATOR, _LETTER, _SINGLE = 0, 1, 2


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """uint32 [num_chars]; a lone surrogate becomes a question mark."""
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)


def token_hashes(codes: npt.NDArray[np.uint32]) -> U64:
    """uint64 [num_tokens]: a hash of each token in order. The same word has the same hash in every text."""
    kinds, folds = _tables()
    low = np.minimum(codes, 0xFFFF)
    kind = kinds[low]
    kind[codes > 0xFFFF] = _SEPARATOR
    kind[(codes >= 0x20000) & (codes < 0x32000)] = _SINGLE
    letter, single = kind == _LETTER, kind == _SINGLE
    before, after = np.zeros_like(letter), np.zeros_like(letter)
    before[1:], after[:-1] = letter[:-1], letter[1:]
    starts = np.flatnonzero(single | (letter & ~before))
    ends = np.flatnonzero(single | (letter & ~after)) + 1
    folded = np.where(codes > 0xFFFF, codes, folds[low]).astype(np.uint64)
    powers, inverses = _powers(1 << max(12, len(codes).bit_length()))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((folded + np.uint64(1)) * powers[: len(codes)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


def ngrams(hashes: U64, num_tokens: int) -> U64:
    """uint64 [len(hashes) - num_tokens + 1], empty if there are too few: a hash of every run of `num_tokens`."""
    count = len(hashes) - num_tokens + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    found = np.zeros(count, np.uint64)
    for i in range(num_tokens):
        found = found * _STEP + hashes[i : i + count]
    return mix(found)


def mix(values: U64) -> U64:
    """Spread every bit over all 64 (splitmix64's finaliser); a bijection."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Kind and folded code point of every code point of the basic plane."""
    kinds, folds = np.zeros(0x10000, np.uint8), np.arange(0x10000, dtype=np.uint32)
    for code in range(0x10000):
        char = chr(code)
        if 0x3400 <= code < 0xA000 or 0xF900 <= code < 0xFB00 or 0x3040 <= code < 0x3100:
            kinds[code] = _SINGLE
        elif char.isalnum() or unicodedata.category(char) in ("Mn", "Mc"):
            kinds[code] = _LETTER
        plain = unicodedata.normalize("NFKC", char) if 0xFF00 <= code < 0xFFF0 else char
        lower = plain.lower()
        folds[code] = ord(lower) if len(lower) == 1 else code
    return kinds, folds


@functools.cache
def _powers(length: int) -> tuple[U64, U64]:
    """base**i and base**-i modulo 2**64 for i < length, a power of two so that few tables are kept."""
    found = []
    for base in (_BASE, _INVERSE):
        row = np.full(length, base, np.uint64)
        row[0] = 1
        found.append(np.cumprod(row))
    return found[0], found[1]
