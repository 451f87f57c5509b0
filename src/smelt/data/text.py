"""Running text from outside, as pools of short sentences: words for generators that no list of ours holds."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

Pools = Mapping[str, tuple[str, ...]]

FILES: Mapping[str, str] = {
    "en": "text/enwiki2015_AA.txt.zst",
    "de": "text/dewiki2022_a.txt.zst",
    "zh": "text/zhwiki_a.txt.zst",
}
ORIGIN = "Wikipedia (English 2015, German 2022, Chinese), single sentences"
LICENCE = "CC BY-SA 3.0 and 4.0"
_STOPS = {"en": re.compile(r"(?<=[.!?]) "), "de": re.compile(r"(?<=[.!?]) "), "zh": re.compile(r"(?<=[。！？])")}
_ALLOWED = {
    "en": re.compile(r"[A-Za-z0-9 ,.;:'!?()-]+"),
    "de": re.compile(r"[A-Za-zÄÖÜäöüß0-9 ,.;:'!?()-]+"),
    "zh": re.compile(r"[\u4e00-\u9fff0-9，。、：！？]+"),
}
_LENGTHS = {"en": (20, 110), "de": (20, 110), "zh": (8, 40)}


def read_pools(folder: Path | None, max_chars: int = 4_000_000) -> Pools:
    """Sentences per language from the files under `folder`, each read for `max_chars`; none where a file is absent."""
    if folder is None:
        return {}
    found = {lang: tuple(sentences(folder / file, lang, max_chars)) for lang, file in FILES.items()}
    return {lang: pool for lang, pool in found.items() if pool}


def available(folder: Path | None) -> list[Path]:
    """The files there are."""
    return [folder / file for file in FILES.values() if folder is not None and (folder / file).is_file()]


def sentences(path: Path, language: str, max_chars: int) -> Iterator[str]:
    """Sentences of plain words and of middling length."""
    import zstandard

    if not path.is_file():
        return
    low, high = _LENGTHS[language]
    read = 0
    with path.open("rb") as raw:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8"):
            read += len(line)
            if read > max_chars:
                return
            if line.startswith("<"):
                continue
            for sentence in _STOPS[language].split(line.strip()):
                if low <= len(sentence) <= high and _ALLOWED[language].fullmatch(sentence):
                    yield sentence
