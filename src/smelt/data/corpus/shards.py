"""A corpus's shards: `SPLIT/SOURCE/docs-00000.jsonl.zst`, one document a line. What training streams from."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smelt.core.errors import InvalidRequestError
from smelt.data.corpus.documents import Document

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")
SHARD_BYTES = 32_000_000  # of text in a shard: about 10 MB packed
_LEVEL = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One written file; `file` is relative to the corpus folder."""

    file: str
    source: str
    split: Split
    num_documents: int
    num_bytes: int
    num_chars: int
    sha256: str


def manifest_of(folder: Path) -> dict[str, Any]:
    """The corpus's manifest. Raises InvalidRequestError where `folder` holds no finished corpus."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise InvalidRequestError(f"{folder.name} holds no finished corpus (no manifest.json): run `smelt data build`")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_documents(folder: Path, split: Split = "train", sources: Iterable[str] | None = None) -> Iterator[Document]:
    """Documents of a finished corpus in its fixed order, a shard at a time; `sources`: only these, in this order."""
    shards = [shard for shard in manifest_of(folder)["shards"] if shard["split"] == split]
    names = list(dict.fromkeys(shard["source"] for shard in shards)) if sources is None else list(sources)
    for name in names:
        for shard in shards:
            if shard["source"] == name:
                yield from read_lines(folder / shard["file"])


def sample_documents(
    folder: Path, num: int, seed: int, *, split: Split = "train", source: str | None = None
) -> Iterator[Document]:
    """`num` different documents (fewer where there are fewer), every one equally likely, in the corpus's order.

    Raises InvalidRequestError where the corpus has no such source.
    """
    shards = [shard for shard in manifest_of(folder)["shards"] if shard["split"] == split]
    if source is not None:
        names = sorted({shard["source"] for shard in shards})
        shards = [shard for shard in shards if shard["source"] == source]
        if not shards:
            raise InvalidRequestError(f"no source {source!r} in the {split} part; there are {', '.join(names)}")
    count = sum(shard["num_documents"] for shard in shards)
    wanted = set(random.Random(seed).sample(range(count), min(num, count)))
    at = 0
    for shard in shards:
        here = {i - at for i in wanted if at <= i < at + shard["num_documents"]}
        at += shard["num_documents"]
        if here:
            yield from (document for i, document in enumerate(read_lines(folder / shard["file"])) if i in here)


def read_lines(path: Path) -> Iterator[Document]:
    """Documents of one shard."""
    import zstandard

    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8", newline="\n"):
            yield Document(**json.loads(line))


def line_of(document: Document) -> str:
    """A document as a line of a shard, without its end; what has no value is left out."""
    fields = {name: getattr(document, name) for name in ("key", "source", "language", "group", "text")}
    return json.dumps({name: value for name, value in fields.items() if value}, ensure_ascii=False)


class ShardWriter:
    """Writes the documents of one source and split, starting a new file after `shard_bytes` of text.

    A file appears under its name only when it is whole. The same documents always give the same bytes.
    """

    def __init__(self, folder: Path, source: str, split: Split, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._source, self._split, self._limit = folder, source, split, shard_bytes
        self._lines: list[str] = []
        self._num_bytes = self._num_chars = 0
        self.shards: list[Shard] = []

    def add(self, document: Document) -> None:
        """Take one more document."""
        self._lines.append(line_of(document))
        self._num_bytes += document.num_bytes
        self._num_chars += len(document.text)
        if self._num_bytes >= self._limit:
            self.close()

    def close(self) -> None:
        """Write what is held."""
        if not self._lines:
            return
        file = f"{self._split}/{self._source}/docs-{len(self.shards):05d}.jsonl.zst"
        packed = pack(self._lines)
        write_whole(self._folder / file, packed)
        self.shards.append(
            Shard(
                file=file,
                source=self._source,
                split=self._split,
                num_documents=len(self._lines),
                num_bytes=self._num_bytes,
                num_chars=self._num_chars,
                sha256=hashlib.sha256(packed).hexdigest(),
            )
        )
        self._lines, self._num_bytes, self._num_chars = [], 0, 0


def pack(lines: list[str], level: int = _LEVEL) -> bytes:
    """Lines as one zstd frame."""
    import zstandard

    text = "".join(line + "\n" for line in lines).encode("utf-8", "replace")
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress(text)


def write_whole(path: Path, content: bytes) -> None:
    """Write so that after a crash the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
