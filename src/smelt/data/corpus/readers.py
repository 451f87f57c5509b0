"""Streaming readers: a file in, raw texts out, one at a time. No reader holds more than a document."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from smelt.data.corpus.documents import RawText

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LONGEST_CHARS = 4_000_000  # a single line or file beyond it is no document; it is named and dropped
SECTION_CHARS = 100_000  # long plain files are cut at blank lines into documents of about this size


@dataclass
class Meter:
    """How far reading has come, in bytes of the files as they lie on the disk."""

    total_bytes: int = 0
    read_bytes: int = 0


Reader = Callable[[Path, Meter], Iterator[RawText]]


class _Counted(io.RawIOBase):
    """A file that tells a meter what is read of it."""

    def __init__(self, raw: io.FileIO, meter: Meter) -> None:
        self._raw, self._meter = raw, meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = self._raw.readinto(buffer)
        self._meter.read_bytes += count
        return count


@contextmanager
def opened(path: Path, meter: Meter) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if it ends in .zst; `meter` follows the packed ones."""
    import zstandard

    with path.open("rb", buffering=0) as raw:
        counted = io.BufferedReader(_Counted(raw, meter), 1 << 18)
        if path.suffix == ".zst":
            with zstandard.ZstdDecompressor().stream_reader(counted, read_across_frames=True) as stream:
                yield stream
        else:
            yield counted


def lines_of(path: Path, meter: Meter) -> Iterator[str]:
    """Lines of a text file, without their ends; bytes that are no UTF-8 become U+FFFD."""
    with opened(path, meter) as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="\n"):
            yield line.rstrip("\n")


def between_marks(start: re.Pattern[str], end: str) -> Reader:
    """A reader of documents between a line that matches `start` (groups `key`, maybe `title`) and a line `end`."""

    def read(path: Path, meter: Meter) -> Iterator[RawText]:
        key, lines, size = "", list[str](), 0
        for line in lines_of(path, meter):
            if mark := start.fullmatch(line):
                key, lines, size = mark["key"], [], 0
            elif line == end and key:
                yield _whole(key, "\n".join(lines), size)
                key, lines, size = "", [], 0
            elif key and size <= LONGEST_CHARS:
                lines.append(line)
                size += len(line)

    return read


def archive(member: Callable[[str, str], RawText | None]) -> Reader:
    """A reader of a tar file: `member(name, text)` says what a file is, None for one that is no text to learn."""

    def read(path: Path, meter: Meter) -> Iterator[RawText]:
        with opened(path, meter) as stream, tarfile.open(fileobj=stream, mode="r|") as files:
            for entry in files:
                if not entry.isfile():
                    continue
                if entry.size > LONGEST_CHARS:
                    yield RawText(key=entry.name, text=None, fault="too long")
                    continue
                content = files.extractfile(entry)
                text = content.read().decode("utf-8-sig", "replace") if content else ""
                if (found := member(entry.name, text)) is not None:
                    yield found

    return read


def json_lines(path: Path, meter: Meter) -> Iterator[RawText]:
    """Objects with `text` (or `content`); `url` or `id` names them, `language` or `lang` may say what they are in."""
    for i, line in enumerate(lines_of(path, meter)):
        if not line.strip():
            continue
        where = f"{path.name}:{i + 1}"
        try:
            record = json.loads(line) if len(line) <= LONGEST_CHARS else None
        except ValueError:
            record = None
        text = (record.get("text") or record.get("content")) if isinstance(record, dict) else None
        if not isinstance(record, dict) or not isinstance(text, str):
            yield RawText(key=where, text=None, fault="unreadable")
            continue
        key = str(record.get("url") or record.get("id") or where)
        said = record.get("language") or record.get("lang") or ""
        yield _whole(key, text, len(text), str(said)[:2].lower())


def plain(path: Path, meter: Meter) -> Iterator[RawText]:
    """A text or Markdown file: one document, or several cut at blank lines where it is long."""
    lines, size, number = list[str](), 0, 0
    for line in lines_of(path, meter):
        lines.append(line)
        size += len(line) + 1
        if size >= SECTION_CHARS and (not line.strip() or size >= 4 * SECTION_CHARS):
            yield RawText(key=f"{path.name}#{number}", text="\n".join(lines), group=path.name)
            lines, size, number = [], 0, number + 1
    if size:
        yield RawText(key=f"{path.name}#{number}", text="\n".join(lines), group=path.name)


def by_suffix(path: Path, meter: Meter) -> Iterator[RawText]:
    """A user's file: JSON lines, text or Markdown, each plain or packed with zstd."""
    name = path.name.removesuffix(".zst")
    return json_lines(path, meter) if name.endswith((".jsonl", ".ndjson")) else plain(path, meter)


USER_SUFFIXES = tuple(kind + packed for kind in (".jsonl", ".ndjson", ".txt", ".md") for packed in ("", ".zst"))


def _whole(key: str, text: str, size: int, language: str = "") -> RawText:
    if size > LONGEST_CHARS:
        return RawText(key=key, text=None, fault="too long")
    return RawText(key=key, text=text, language=language)
