"""A corpus as token ids on disk: built once, read through the page cache, so it may be larger than memory.

Beside a corpus's `SPLIT/SOURCE/docs-*.jsonl.zst` stands `tokens-KEY/`, where KEY names the tokenizer; in it each shard
of text has `SHA.bin`, its documents' ids behind each other as uint16 (uint32 above 65,536 entries), and `SHA.npz`,
their lengths. Files are named by the hash of the text they come from: no other corpus or tokenizer takes them for its.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smelt.core.errors import DataError
from smelt.data.corpus.shards import Split, manifest_of, read_lines
from smelt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 256  # documents handed to the tokenizer at once, over which it spreads its threads


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the building has come, in bytes of text; `here_bytes` and `elapsed_s` since this call began."""

    done_bytes: int
    total_bytes: int
    num_tokens: int
    here_bytes: int
    elapsed_s: float

    @property
    def bytes_per_s(self) -> float:
        """Of text, by everyone at work."""
        return self.here_bytes / max(1e-9, self.elapsed_s)

    @property
    def left_s(self) -> float:
        """Seconds left at the rate so far; 0 where nothing was to be done."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.here_bytes else 0.0


@dataclass(frozen=True)
class TokenShards:
    """Token ids of some sources of a corpus, document by document: bos, text, end.

    files: paths without suffix, in the corpus's order. Opened on first use, in each process anew.
    """

    files: tuple[Path, ...]
    dtype: str
    num_bytes: int

    def __getstate__(self) -> dict[str, Any]:
        """Paths travel to another process, arrays do not."""
        return {name: self.__dict__[name] for name in ("files", "dtype", "num_bytes")}

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Ids of every document."""
        return np.concatenate([np.zeros(0, np.int64), *self._lengths])

    def document(self, index: int) -> NDArray[np.integer[Any]]:
        """Ids of document `index`, a view of the file."""
        shard = int(np.searchsorted(self._first_document, index, side="right")) - 1
        at = index - int(self._first_document[shard])
        starts = self._starts[shard]
        view: NDArray[np.integer[Any]] = self._maps[shard][starts[at] : starts[at + 1]]
        return view

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def _lengths(self) -> list[NDArray[np.int64]]:
        return [np.load(file.with_suffix(".npz"))["lengths"].astype(np.int64) for file in self.files]

    @cached_property
    def _starts(self) -> list[NDArray[np.int64]]:
        return [np.concatenate([[0], np.cumsum(lengths)]) for lengths in self._lengths]

    @cached_property
    def _first_document(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum([len(lengths) for lengths in self._lengths])])[:-1]

    @cached_property
    def _maps(self) -> list[NDArray[np.integer[Any]]]:
        maps: list[NDArray[np.integer[Any]]] = []
        for file, starts in zip(self.files, self._starts, strict=True):
            path = file.with_suffix(".bin")
            sought = int(starts[-1]) * np.dtype(self.dtype).itemsize
            if path.stat().st_size != sought:
                raise DataError(
                    f"{path.name}: sought {sought} bytes, found {path.stat().st_size}; remove it and rebuild"
                )
            maps.append(np.memmap(path, self.dtype, mode="r") if sought else np.zeros(0, self.dtype))
        return maps


def tokenize_corpus(
    corpus: Path,
    tokenizer: Tokenizer,
    *,
    split: Split = "train",
    sources: Sequence[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TokenShards:
    """The token shards of a corpus's split (only these `sources`); makes those that are not there.

    Called again after a kill it goes on; called in several processes at once (the ranks of a run) they share the
    work, shard by shard, and each returns when all is done. Raises DataError for a corpus without such documents or a
    tokenizer without `bos` and `end`.
    """
    shards = [shard for shard in manifest_of(corpus)["shards"] if shard["split"] == split]
    wanted = {shard["source"] for shard in shards} if sources is None else set(sources)
    if missing := wanted - {shard["source"] for shard in shards}:
        raise DataError(f"the corpus has no {split} documents of {', '.join(sorted(missing))}")
    shards = [shard for shard in shards if shard["source"] in wanted]
    if not shards:
        raise DataError(f"the corpus has no {split} documents")
    folder = corpus / f"tokens-{tokenizer_key(tokenizer)}"
    folder.mkdir(exist_ok=True)
    found = TokenShards(
        files=tuple(folder / shard["sha256"][:24] for shard in shards),
        dtype=token_dtype(tokenizer),
        num_bytes=sum(shard["num_bytes"] for shard in shards),
    )
    _make_all([(corpus / shard["file"], shard["num_bytes"]) for shard in shards], found, tokenizer, on_progress)
    return found


def _make_all(
    texts: Sequence[tuple[Path, int]],
    shards: TokenShards,
    tokenizer: Tokenizer,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Every shard that is not there: first those that no other process is at, then, having waited, what is left."""
    began = time.monotonic()
    jobs = [(text, size, file) for (text, size), file in zip(texts, shards.files, strict=True)]
    before = sum(size for _, size, file in jobs if _done(file))
    for wait in (False, True):
        for text, _, file in jobs:
            if _done(file):
                continue
            with _claimed(file, wait=wait) as mine:
                if mine and not _done(file):
                    _write(text, file, tokenizer)
            if on_progress is not None:
                done = [(size, file.with_suffix(".bin").stat().st_size) for _, size, file in jobs if _done(file)]
                done_bytes = sum(size for size, _ in done)
                on_progress(
                    Progress(
                        done_bytes=done_bytes,
                        total_bytes=shards.num_bytes,
                        num_tokens=sum(size for _, size in done) // np.dtype(shards.dtype).itemsize,
                        here_bytes=done_bytes - before,
                        elapsed_s=time.monotonic() - began,
                    )
                )


def tokenizer_key(tokenizer: Tokenizer) -> str:
    """12 hexadecimal digits that stand for what the tokenizer makes of a text."""
    return hashlib.sha256(tokenizer.json.encode()).hexdigest()[:12]


def token_dtype(tokenizer: Tokenizer) -> str:
    """The smallest that holds every id."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


def _borders(tokenizer: Tokenizer) -> tuple[int, int]:
    try:
        return tokenizer.control_ids["<|bos|>"], tokenizer.control_ids["<|end|>"]
    except KeyError as error:
        raise DataError(f"sought the control tokens <|bos|> and <|end|>, the tokenizer has no {error}") from None


def _done(file: Path) -> bool:
    return file.with_suffix(".npz").is_file()  # written after the ids


@contextmanager
def _claimed(file: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the shard is this process's to make; the claim of a killed process falls with it."""
    with file.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _write(source: Path, file: Path, tokenizer: Tokenizer) -> None:
    bos, end = _borders(tokenizer)
    lengths: list[int] = []
    part = file.with_suffix(".bin.part")
    with part.open("wb") as out:
        for texts in _batches(document.text for document in read_lines(source)):
            for ids in tokenizer.encode_batch(texts):
                lengths.append(len(ids) + 2)
                out.write(np.array([bos, *ids, end], token_dtype(tokenizer)).tobytes())
        out.flush()
        os.fsync(out.fileno())
    part.replace(file.with_suffix(".bin"))
    index = file.with_suffix(".npz.part")
    with index.open("wb") as out:
        np.savez(out, lengths=np.array(lengths, np.uint32))
        out.flush()
        os.fsync(out.fileno())
    index.replace(file.with_suffix(".npz"))
    file.with_suffix(".lock").unlink(missing_ok=True)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    held: list[str] = []
    for text in texts:
        held.append(text)
        if len(held) == _BATCH:
            yield held
            held = []
    if held:
        yield held
