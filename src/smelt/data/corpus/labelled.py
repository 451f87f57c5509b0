"""What filters and masks are worth, counted on documents somebody labelled.

A file of labelled documents is JSON lines: `label` (the name of the filter that must take the document, or "keep"),
`language`, `kind` (what sort of text it is, for people), `theme` (the same for texts written alike in several
languages: they are no independent evidence), `text`. In documents to keep, all personal data stands as
`{{kind|value}}` with a kind of `personal.PLACEHOLDERS`; the braces and the kind are taken out on reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smelt.core.errors import DataError
from smelt.data.corpus import personal
from smelt.data.corpus.documents import LANGUAGES, Document
from smelt.data.corpus.filters import Filter
from smelt.data.corpus.page import Page

KEEP = "keep"
_MARK = re.compile(r"\{\{([a-z ]+)\|([^{}|]+)\}\}")
_FIELDS = {"label", "language", "kind", "theme", "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A document, the filter that must take it ("keep": none may), and the personal data the masks must find."""

    document: Document
    label: str
    kind: str
    theme: str = ""
    spans: tuple[personal.Span, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What was found of what was sought.

    hits: sought and found. misses: sought, not found. false_alarms: found, not sought; `on_clean` of them in a document
    to keep, of which there are `num_clean`.
    """

    hits: int
    misses: int
    false_alarms: int
    on_clean: int = 0
    num_clean: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            hits=self.hits + other.hits,
            misses=self.misses + other.misses,
            false_alarms=self.false_alarms + other.false_alarms,
            on_clean=self.on_clean + other.on_clean,
            num_clean=self.num_clean + other.num_clean,
        )


def read_labelled(path: Path) -> list[Labelled]:
    """All documents of a file, in order.

    Raises DataError with the number of a line that is not as the module says.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: no JSON object ({error})") from error
        if not isinstance(row, dict) or set(row) != _FIELDS:
            raise DataError(f"{where}: sought exactly the fields {', '.join(sorted(_FIELDS))}")
        if row["language"] not in LANGUAGES:
            raise DataError(f"{where}: language {row['language']!r} is none of {', '.join(LANGUAGES)}")
        text, spans = unmarked(row["text"])
        if strange := {span.kind for span in spans} - set(personal.PLACEHOLDERS):
            raise DataError(f"{where}: no kind of personal data is called {', '.join(sorted(strange))}")
        document = Document(text=text, source=path.stem, language=row["language"], key=str(number))
        found.append(
            Labelled(document=document, label=row["label"], kind=row["kind"], theme=row["theme"], spans=tuple(spans))
        )
    return found


def unmarked(text: str) -> tuple[str, list[personal.Span]]:
    """The text without its `{{kind|value}}` marks, and where in it each value stands."""
    pieces, spans, at, length = list[str](), list[personal.Span](), 0, 0
    for mark in _MARK.finditer(text):
        length += mark.start() - at
        spans.append(personal.Span(length, length + len(mark[2]), mark[1]))
        pieces += [text[at : mark.start()], mark[2]]
        length, at = length + len(mark[2]), mark.end()
    return "".join([*pieces, text[at:]]), spans


def taken(documents: Sequence[Labelled], filters: Sequence[Filter]) -> list[set[str]]:
    """Per document the names of all filters that speak against it, each asked alone."""
    pages = [Page(one.document) for one in documents]
    return [{one.name for one in filters if one.rule(page) is not None} for page in pages]


def filter_counts(documents: Sequence[Labelled], verdicts: Sequence[set[str]], name: str) -> Counts:
    """How well the filter `name` did; `verdicts` are `taken`'s.

    A document with another filter's label is a false alarm. name "any": any filter may take any document to be dropped.
    """
    hits = misses = false_alarms = on_clean = num_clean = 0
    for one, names in zip(documents, verdicts, strict=True):
        sought = one.label != KEEP if name == "any" else one.label == name
        found = bool(names) if name == "any" else name in names
        hits += sought and found
        misses += sought and not found
        false_alarms += found and not sought
        on_clean += found and one.label == KEEP
        num_clean += one.label == KEEP
    return Counts(hits=hits, misses=misses, false_alarms=false_alarms, on_clean=on_clean, num_clean=num_clean)


def mask_counts(documents: Sequence[Labelled]) -> dict[str, Counts]:
    """Per kind of personal data in documents to keep: a hit is the same kind at exactly the same place."""
    found = {kind: Counts(hits=0, misses=0, false_alarms=0) for kind in personal.PLACEHOLDERS}
    for one in documents:
        if one.label != KEEP:
            continue
        sought, masked = set(one.spans), set(personal.find(one.document.text))
        for kind in {span.kind for span in sought | masked}:
            ours, theirs = ({span for span in side if span.kind == kind} for side in (masked, sought))
            false = len(ours - theirs)
            found[kind] += Counts(hits=len(ours & theirs), misses=len(theirs - ours), false_alarms=false)
    return found
