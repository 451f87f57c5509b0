"""One piece of a source on its way: raw texts in, judged documents out. The unit of work, of resuming, of parallelism.

A piece holds the same texts however many processes there are, so the corpus does not depend on them.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from smelt.data.corpus import dedup, personal
from smelt.data.corpus.clean import simplified
from smelt.data.corpus.decontaminate import Index
from smelt.data.corpus.documents import LANGUAGES, Document, RawText, digest, short_hash
from smelt.data.corpus.filters import judge
from smelt.data.corpus.language import identify
from smelt.data.corpus.page import Page
from smelt.data.corpus.shards import line_of, pack, write_whole
from smelt.data.corpus.text_sources import TextSource

PIECE_CHARS = 4_000_000
_EXAMPLES = 5
DOCUMENT_ROW = np.dtype([("digest", "<u8", 2), ("split", "<u8"), ("num_bytes", "<u4"), ("language", "u1")])


@dataclass(slots=True)
class Drop:
    """What one rule took from one source: counts, and a few texts by their hash."""

    count: int = 0
    num_bytes: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, text: str, num_bytes: int) -> None:
        """One more document."""
        self.count += 1
        self.num_bytes += num_bytes
        if len(self.examples) < _EXAMPLES:
            self.examples.append(short_hash(text))

    def merge(self, other: Drop) -> None:
        """Those of a later piece."""
        self.count += other.count
        self.num_bytes += other.num_bytes
        self.examples = (self.examples + other.examples)[:_EXAMPLES]


@dataclass(slots=True)
class PieceReport:
    """What became of a piece. `num_chars` and `num_bytes` are of the raw text."""

    num_texts: int = 0
    num_chars: int = 0
    num_bytes: int = 0
    num_kept: int = 0
    drops: dict[str, Drop] = field(default_factory=dict)
    masked: Counter[str] = field(default_factory=Counter)
    host_pages: Counter[str] = field(default_factory=Counter)
    host_drops: Counter[str] = field(default_factory=Counter)

    def drop(self, rule: str, text: str, num_bytes: int) -> None:
        """Count one dropped text."""
        self.drops.setdefault(rule, Drop()).add(text, num_bytes)

    def to_json(self) -> str:
        """For the piece's file."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["drops"] = {rule: asdict(drop) for rule, drop in self.drops.items()}
        return json.dumps(values, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> PieceReport:
        """What `to_json` wrote."""
        found: dict[str, Any] = json.loads(text)
        found["drops"] = {rule: Drop(**drop) for rule, drop in found["drops"].items()}
        return PieceReport(**found | {name: Counter(found[name]) for name in ("masked", "host_pages", "host_drops")})


@dataclass(frozen=True, slots=True)
class PieceFiles:
    """Where the piece `number` of a source lies under `folder`; `report` is written last and says that all is there."""

    folder: Path
    source: str
    number: int

    def path(self, suffix: str) -> Path:
        """One of its files."""
        return self.folder / f"{self.source}-{self.number:05d}.{suffix}"

    @property
    def done(self) -> bool:
        """Whether the piece is whole."""
        return self.path("report.json").is_file()

    def report(self) -> PieceReport:
        """Of a whole piece."""
        return PieceReport.from_json(self.path("report.json").read_text(encoding="utf-8"))


def cut(texts: Iterator[RawText], limit_chars: int | None, piece_chars: int = PIECE_CHARS) -> Iterator[list[RawText]]:
    """Raw texts in pieces of about `piece_chars`; reading ends after `limit_chars`."""
    piece, size, total = list[RawText](), 0, 0
    for text in texts:
        piece.append(text)
        size += len(text.text or "")
        if size >= piece_chars:
            yield piece
            total, piece, size = total + size, [], 0
        if limit_chars is not None and total + size >= limit_chars:
            break
    if piece:
        yield piece


def make_document(raw: RawText, source: TextSource) -> Document:
    """A raw text cleaned; its language is its own, or its source's, or the one it reads like ('' if unclear)."""
    text = source.cleaner(raw.text or "")
    language = raw.language or source.language
    document = Document(text=text, source=source.name, language=language or "zh", key=raw.key, group=raw.group)
    if not language:
        language = identify(Page(document)) or ""
    if language == "zh":
        text = simplified(text)
    return Document(text=text, source=source.name, language=language, key=raw.key, group=raw.group)


def process(texts: Sequence[RawText], source: TextSource, index: Index, files: PieceFiles) -> None:
    """Clean, judge, mask and sign the texts of a piece, and write its files."""
    report, lines = PieceReport(), list[str]()
    rows, signatures, hits = [], [], [np.empty((0, 2), np.int64)]
    for raw in texts:
        page = _judged(raw, source, report)
        if page is None:
            continue
        document = page.document
        own = np.frombuffer(digest(document.text), "<u8")
        side = np.frombuffer(digest(f"{source.name}/{document.group}"), "<u8") if document.group else own
        rows.append((own, side[0], document.num_bytes, LANGUAGES.index(document.language)))
        signatures.append(dedup.signature(page.hashes))
        grams = index.hits(page.hashes)
        hits.append(np.stack([np.full(len(grams), len(lines)), grams], axis=1))
        lines.append(line_of(document))
    report.num_kept = len(lines)
    table = np.array(rows, DOCUMENT_ROW)
    stack = np.array(signatures, np.uint32).reshape(len(signatures), dedup.NUM_HASHES)
    write_whole(files.path("jsonl.zst"), pack(lines, level=3))
    arrays = {"rows": table, "signatures": stack, "bands": dedup.band_keys(stack), "hits": np.concatenate(hits)}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_whole(files.path(f"{name}.npy"), buffer.getvalue())
    write_whole(files.path("report.json"), report.to_json().encode())


def _judged(raw: RawText, source: TextSource, report: PieceReport) -> Page | None:
    """The document that a raw text becomes, masked, or None: then the report says why."""
    report.num_texts += 1
    if raw.text is None:
        report.drop(raw.fault, raw.key, 0)
        return None
    num_bytes = len(raw.text.encode("utf-8", "replace"))
    report.num_chars += len(raw.text)
    report.num_bytes += num_bytes
    document = make_document(raw, source)
    report.host_pages[document.host] += 1
    if document.language not in LANGUAGES:
        report.drop("language", document.text, num_bytes)
        return None
    page = Page(document)
    if verdict := judge(page, source.filters):
        report.drop(verdict.filter, document.text, num_bytes)
        if verdict.filter == "personal data":
            report.host_drops[document.host] += 1
        return None
    if page.personal_spans:
        text, masked = personal.masked(document.text, page.personal_spans)
        report.masked.update(masked)
        page = Page(replace(document, text=text))
    return page


def total(reports: Sequence[PieceReport]) -> PieceReport:
    """Reports of a source's pieces in one."""
    whole = PieceReport()
    for report in reports:
        whole.num_texts += report.num_texts
        whole.num_chars += report.num_chars
        whole.num_bytes += report.num_bytes
        whole.num_kept += report.num_kept
        for rule, drop in report.drops.items():
            whole.drops.setdefault(rule, Drop()).merge(drop)
        for mine, theirs in (
            (whole.masked, report.masked),
            (whole.host_pages, report.host_pages),
            (whole.host_drops, report.host_drops),
        ):
            mine.update(theirs)
    return whole
