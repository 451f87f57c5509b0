"""No evaluation text in the training text: a document that shares 13 tokens in a row with one is dropped.

GPT-3's rule (Brown et al. 2020, appendix C): words, and characters in Chinese; an n-gram that more than ten documents
have is a common phrase ("had someone living alone who was 65 years of age or older" stands in every US town of
Wikipedia and in XQuAD). Ours is stricter: who shares 25 n-grams goes, however common each is. Texts under 13 tokens
cannot be told from common phrases and are not looked for. Every file of `eval/` counts, except GSM8K's train part,
which is for training; of the dialogue sets the test parts count.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smelt.data.corpus.clean import simplified
from smelt.data.corpus.readers import Meter, lines_of
from smelt.data.corpus.tokens import U64, code_points, ngrams, token_hashes

if TYPE_CHECKING:
    from smelt.data.source import Source

NGRAM_LEN = 13
COMMON_DOCUMENTS = 10
MANY_GRAMS = 25
_HINT_BITS = 22
_HINT_SHIFT = np.uint64(64 - _HINT_BITS)
_FOR_TRAINING = ("gsm8k/train.jsonl",)
_NO_TEXT = ("SOURCE.md", "LICENSE.upstream")


@dataclass(frozen=True)
class Index:
    """Sorted n-grams uint64 [n] of evaluation texts, and for each the number of its set in `names`."""

    grams: U64
    owners: npt.NDArray[np.uint8]
    names: tuple[str, ...]

    @functools.cached_property
    def _hints(self) -> npt.NDArray[np.bool_]:
        table = np.zeros(1 << _HINT_BITS, bool)
        table[self.grams >> _HINT_SHIFT] = True
        return table

    def hits(self, hashes: U64) -> npt.NDArray[np.int64]:
        """int64 [m]: which of the index's n-grams a text of these token hashes has, each once, in order."""
        if not len(self.grams):
            return np.empty(0, np.int64)
        grams = ngrams(hashes, NGRAM_LEN)
        grams = grams[self._hints[grams >> _HINT_SHIFT]]  # most are none: a look into 4 MB instead of a search
        at = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        return np.unique(at[self.grams[at] == grams])

    def contaminated(self, hits: npt.NDArray[np.int64]) -> dict[int, str]:
        """Document -> evaluation set, from all hits int64 [m, 2] of (document, n-gram), each pair once."""
        num_documents = np.bincount(hits[:, 1], minlength=len(self.grams))
        num_grams = np.bincount(hits[:, 0])
        rare = num_documents[hits[:, 1]] <= COMMON_DOCUMENTS
        guilty = hits[rare | (num_grams[hits[:, 0]] >= MANY_GRAMS)]
        documents, first = np.unique(guilty[:, 0], return_index=True)
        owners = self.owners[guilty[first, 1]]
        return {int(d): self.names[int(owner)] for d, owner in zip(documents, owners, strict=True)}

    def save(self, path: Path) -> None:
        """For worker processes: one .npz file."""
        np.savez(path, grams=self.grams, owners=self.owners, names=np.array(self.names, dtype=np.str_))

    @staticmethod
    def load(path: Path) -> Index:
        """What `save` wrote."""
        with np.load(path) as arrays:
            return Index(arrays["grams"], arrays["owners"], tuple(map(str, arrays["names"])))


def build_index(sets: Iterable[tuple[str, Iterable[str]]]) -> Index:
    """An index over (name, texts); an n-gram of two sets belongs to the first. Chinese is indexed simplified."""
    names, grams, owners = list[str](), [np.empty(0, np.uint64)], [np.empty(0, np.uint8)]
    for number, (name, texts) in enumerate(sets):
        names.append(name)
        seen: set[int] = set()  # of hashes: schema-like sets say the same few strings a million times
        parts: list[U64] = []
        for text in texts:
            if len(text) < (2 * NGRAM_LEN - 1 if text.isascii() else NGRAM_LEN) or (key := hash(text)) in seen:
                continue
            seen.add(key)
            parts.append(ngrams(token_hashes(code_points(simplified(text))), NGRAM_LEN))
        mine = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))
        grams.append(mine)
        owners.append(np.full(len(mine), number, np.uint8))
    found, first = np.unique(np.concatenate(grams), return_index=True)
    return Index(found, np.concatenate(owners)[first], tuple(names))


def evaluation_sets(folder: Path) -> Iterator[tuple[str, Iterator[str]]]:
    """(name, texts) of every evaluation set under a data folder: each folder of eval/, then dialogue test parts."""
    root = folder / "eval"
    for place in sorted(path for path in root.glob("*") if path.is_dir()):
        yield f"eval/{place.name}", _texts_of(place, root)
    from smelt.data.sources import SOURCES

    for source in SOURCES:
        file = folder / (source.test_file or source.file)
        if source.has_test and file.is_file():
            yield f"dialogue/{source.name}", _test_texts(source, file)


def _test_texts(source: Source, file: Path) -> Iterator[str]:
    """Strings of a dialogue set's test records, read one at a time."""
    records = (json.loads(line) for line in lines_of(file, Meter()) if line.strip())
    for i, record in enumerate(records):
        if source.test_file is not None or source.part(i, record) == "test":
            yield from _strings(record)


def _texts_of(place: Path, root: Path) -> Iterator[str]:
    for path in sorted(place.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or path.name in _NO_TEXT or name in _FOR_TRAINING:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix in (".csv", ".tsv"):
            for row in csv.reader(text.splitlines(), delimiter="," if path.suffix == ".csv" else "\t"):
                yield from row
        elif path.suffix in (".json", ".jsonl"):
            yield from _json_strings(text)
        else:
            yield from text.splitlines()


def _json_strings(text: str) -> Iterator[str]:
    """Strings of one JSON value, or of JSON lines (some sets name these .json)."""
    try:
        yield from _strings(json.loads(text))
    except ValueError:
        for line in filter(str.strip, text.split("\n")):
            yield from _strings(json.loads(line))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
