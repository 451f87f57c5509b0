"""A small linear model over characters that knows hate, adult and spam from texts about them.

Word lists find what their author thought of; this finds the tone. A window of text is the set of its hashed 1- to
5-grams of characters (lower case, digits alike), each as the logarithm of how often it is there, the whole of length
one; a filter is a row of weights over it (logistic regression: Joachims 1998 for the features, Weinberger et al. 2009
for the hashing). `recipes/filters.py` makes the weights, 64 KiB a filter.

Shapes: W = windows of a page, D = 2**16 hashed n-grams, F = filters (`names`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from smelt.data.corpus.documents import LANGUAGES
from smelt.data.corpus.tokens import U64, code_points, mix, ngrams

NUM_BUCKETS = 2**16
MAX_NGRAM = 5
MAX_WINDOWS = 8
MIN_NGRAMS = 450  # different ones in a window; below, a few words repeated would decide (70 words have over 1,000)
WINDOW_CHARS: Mapping[str, int] = {"en": 480, "de": 480, "zh": 240}
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Learned:
    """weights: float32 [D, F]. biases, limits: float32 [F]; a window speaks against its page from the limit on."""

    names: tuple[str, ...]
    weights: F32
    biases: F32
    limits: F32

    def shares(self, text: str, language: str) -> dict[str, float]:
        """Per filter the share of the text's windows that speak against it."""
        rows = [features(window) for window in windows(text, language)]
        against_wf = np.stack(
            [(self.logits(ids, values) >= self.limits) & (len(ids) >= MIN_NGRAMS) for ids, values in rows]
        )
        return dict(zip(self.names, np.mean(against_wf, axis=0).tolist(), strict=True))

    def logits(self, ids: npt.NDArray[np.int64], values: F32) -> F32:
        """float32 [F]: how sure each filter is of one window."""
        found: F32 = values @ self.weights[ids] + self.biases
        return found


@functools.cache
def learned() -> Learned:
    """The weights of the package: `words/learned.npz`, 8-bit integers with a scale for each filter."""
    with files("smelt.data.corpus").joinpath("words", "learned.npz").open("rb") as stream, np.load(stream) as stored:
        weights = np.ascontiguousarray(stored["weights"].T) * stored["scales"]  # a bucket's weights side by side
        return Learned(tuple(stored["names"].tolist()), weights, stored["biases"], stored["limits"])


def windows(text: str, language: str) -> Iterator[str]:
    """At most eight stretches of the text, spread evenly; the last one may reach back so that none is short."""
    text = " ".join(text.split())
    size = WINDOW_CHARS.get(language, WINDOW_CHARS[LANGUAGES[0]])
    count = min(MAX_WINDOWS, max(1, -(-len(text) // size)))
    room = max(0, len(text) - size)
    for i in range(count):
        start = room * i // max(1, count - 1)
        yield text[start : start + size]


def features(window: str) -> tuple[npt.NDArray[np.int64], F32]:
    """Buckets of the window's n-grams, and their values, whose squares add up to one."""
    codes = code_points(window.lower()).astype(np.uint64)
    codes[(codes >= ord("0")) & (codes <= ord("9"))] = ord("0")
    letters: U64 = mix(codes)
    hashed = np.concatenate([ngrams(letters, size) for size in range(1, MAX_NGRAM + 1)])
    ids, counts = np.unique((hashed % np.uint64(NUM_BUCKETS)).astype(np.int64), return_counts=True)
    values = np.log1p(counts).astype(np.float32)
    return ids, values / max(1e-9, float(np.linalg.norm(values)))
