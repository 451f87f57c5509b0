"""Every source of running text as a value: files, licence, origin, how it is read, cleaned and filtered.

What a shipped model learned from is answered here and in a corpus's manifest. Files stay outside the repository.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from smelt.core.errors import InvalidRequestError
from smelt.data.corpus import clean, content, quality, readers
from smelt.data.corpus.aggregators import AGGREGATOR
from smelt.data.corpus.documents import LANGUAGES, RawText
from smelt.data.corpus.filters import Filter
from smelt.data.corpus.language import LANGUAGE
from smelt.data.corpus.readers import Meter, Reader

SEED_FILTERS = (content.HATE, content.ADULT, AGGREGATOR, content.SPAM)
"""The four of GPT-4o mini's launch text; they run on every source, before all others."""

_READABLE = (quality.BROKEN, quality.BOILERPLATE, quality.REPEATED_LINES, quality.REPEATED_NGRAMS)
PROSE = (
    *SEED_FILTERS,
    quality.length(50),
    LANGUAGE,
    quality.LETTERS,
    quality.STOP_WORDS,
    quality.WORD_LENGTH,
    quality.SYMBOLS,
    quality.LIST_LINES,
    quality.SENTENCES,
    *_READABLE,
)
WEB = (*PROSE, quality.BRACES)
STORIES = (*SEED_FILTERS, quality.length(20), LANGUAGE, quality.BROKEN)  # children's books repeat themselves
TEXTBOOK = (*SEED_FILTERS, quality.length(50), LANGUAGE, quality.STOP_WORDS, quality.SYMBOLS, quality.BROKEN)
TECHNICAL = (*SEED_FILTERS, quality.length(20), quality.BROKEN)


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Where texts come from. `files` are relative to a data folder, or absolute for a user's own.

    `language` "" means that each text says its own. Earlier sources win where two hold the same text. `word` is what
    `chosen` makes the source from in another process; '' is its name.
    """

    name: str
    files: tuple[str, ...]
    licence: str
    origin: str
    language: str
    reader: Reader
    cleaner: Callable[[str], str]
    filters: tuple[Filter, ...]
    word: str = ""

    def paths(self, folder: Path | None) -> list[Path]:
        """Its files; empty unless all are there."""
        found = [Path(file) if folder is None else folder / file for file in self.files]
        return found if all(path.is_file() for path in found) else []

    def texts(self, folder: Path | None, meter: Meter) -> Iterator[RawText]:
        """Raw texts of all files in order; `meter` counts the bytes read."""
        paths = self.paths(folder)
        meter.total_bytes = sum(path.stat().st_size for path in paths)
        for path in paths:
            yield from self.reader(path, meter)

    def sha256(self, folder: Path | None) -> dict[str, str]:
        """Of each file as it lies there, by its name."""
        found = {}
        for path in self.paths(folder):
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found


_WIKI_PAGE = readers.between_marks(re.compile(r'<doc id="\d+" url="(?P<key>[^"]*)" title="[^\n]*">'), "</doc>")
_MODULE = readers.between_marks(re.compile(r'<module path="(?P<key>[^"]*)">'), "</module>")
_STORY_LICENCE = re.compile(r"License: \[([A-Z-]+)\]")


def _story(name: str, text: str) -> RawText | None:
    """Stories whose own credit says CC BY; some files of the collection are non-commercial."""
    path = PurePosixPath(name)
    language = path.parent.name
    if path.name == "README.md" or language not in LANGUAGES:
        return None
    licence = _STORY_LICENCE.search(text)
    if licence is None or licence[1] != "CC-BY":
        return RawText(key=name, text=None, fault="licence")
    return RawText(key=name, text=text, language=language, group=path.name[:4])


def _news(name: str, text: str) -> RawText | None:
    """Three levels of one article are a group. The outer copies of the middle level lost their quotation marks."""
    path = PurePosixPath(name)
    if path.suffix != ".txt" or name.count("Int-Txt") == 1:
        return None
    first, _, rest = text.partition("\n")
    body = rest if first.strip() in ("Elementary", "Intermediate", "Advanced") else text
    return RawText(key=name, text=body, language="en", group=path.stem.rsplit("-", 1)[0])


def _command(name: str, text: str) -> RawText | None:
    folders = {"pages": "en", "pages.de": "de", "pages.zh": "zh"}
    path = PurePosixPath(name)
    language = folders.get(path.parts[1]) if len(path.parts) > 2 else None
    return None if language is None else RawText(key=name, text=text, language=language, group=path.name)


def _chapter(name: str, text: str) -> RawText | None:
    path = PurePosixPath(name)
    if path.suffix != ".md" or path.name in ("SOURCE.md", "zreferences.md"):
        return None
    stem = path.stem.removesuffix("_origin")
    return RawText(
        key=name, text=text, language="zh" if stem == path.stem else "en", group=f"{path.parent.name}/{stem}"
    )


def _guide(name: str, text: str) -> RawText | None:
    path = PurePosixPath(name)
    if path.suffix != ".md" or path.name == "SOURCE.md" or "TRANSLATE" in path.name:
        return None
    return RawText(key=name, text=text)


def _wiki(name: str, files: tuple[str, ...], language: str, licence: str, origin: str) -> TextSource:
    return TextSource(
        name=name,
        files=files,
        licence=licence,
        origin=origin,
        language=language,
        reader=_WIKI_PAGE,
        cleaner=clean.encyclopedia,
        filters=PROSE,
    )


_BOOKS = (
    "college-physics-bundle",
    "introduction-sociology",
    "prealgebra-bundle",
    "psychology",
    "us-history",
    "world-history",
)

SOURCES: tuple[TextSource, ...] = (
    TextSource(
        name="openstax",
        files=tuple(f"text/openstax_{book}.txt.zst" for book in _BOOKS),
        licence="CC BY 4.0 (at the commits before 2026-03-23)",
        origin="OpenStax textbooks, openstax/osbooks-*",
        language="en",
        reader=_MODULE,
        cleaner=clean.textbook,
        filters=TEXTBOOK,
    ),
    TextSource(
        name="onestop",
        files=("text/onestop_english.tar.zst",),
        licence="CC BY-SA 4.0",
        origin="OneStopEnglish corpus, nishkalavallabhi/OneStopEnglishCorpus",
        language="en",
        reader=readers.archive(_news),
        cleaner=clean.regular,
        filters=PROSE,
    ),
    TextSource(
        name="storybook",
        files=("text/asp_stories.tar.zst",),
        licence="CC BY (stories that say so; CC BY-NC ones are dropped)",
        origin="African Storybook, global-asp/asp-source",
        language="",
        reader=readers.archive(_story),
        cleaner=clean.story,
        filters=STORIES,
    ),
    _wiki(
        "enwiki",
        ("text/enwiki2015_AA.txt.zst", "text/enwiki2015_AB.txt.zst"),
        "en",
        "CC BY-SA 3.0",
        "English Wikipedia 2015, jason-feng/wikiVisual",
    ),
    _wiki(
        "dewiki",
        ("text/dewiki2022_a.txt.zst", "text/dewiki2022_b.txt.zst"),
        "de",
        "CC BY-SA 3.0",
        "German Wikipedia 2022, jeevanv123/german",
    ),
    _wiki(
        "zhwiki",
        ("text/zhwiki_a.txt.zst", "text/zhwiki_b.txt.zst"),
        "zh",
        "CC BY-SA 4.0",
        "Chinese Wikipedia, overweightbarracuda/science_fair2324",
    ),
    TextSource(
        name="d2l",
        files=("text/d2l_zh.tar.zst",),
        licence="Apache-2.0",
        origin="Dive into Deep Learning, Chinese edition with its English originals, d2l-ai/d2l-zh",
        language="",
        reader=readers.archive(_chapter),
        cleaner=clean.chapter,
        filters=TECHNICAL,
    ),
    TextSource(
        name="vue-docs",
        files=("text/vue_docs_zh.tar.zst",),
        licence="CC BY 4.0",
        origin="Vue.js documentation in Chinese, vuejs-translations/docs-zh-cn",
        language="zh",
        reader=readers.archive(_guide),
        cleaner=clean.code_safe,
        filters=TECHNICAL,
    ),
    TextSource(
        name="tldr",
        files=("text/tldr.tar.zst",),
        licence="CC BY 4.0",
        origin="tldr pages, tldr-pages/tldr",
        language="",
        reader=readers.archive(_command),
        cleaner=clean.code_safe,
        filters=TECHNICAL,
    ),
)


def chosen(wanted: list[str], folder: Path | None) -> list[TextSource]:
    """Sources by the words of a command line: names of ours, or `name=PATH,language=en[,licence=...]` of the user's.

    None wanted: all of ours whose files are under `folder`. Raises InvalidRequestError on a word it cannot follow.
    """
    ours = {source.name: source for source in SOURCES}
    if not wanted:
        found = [source for source in SOURCES if folder is not None and source.paths(folder)]
        if not found:
            raise InvalidRequestError("no source of text: give --data a folder that holds text/, or --source name=PATH")
        return found
    found = []
    for word in wanted:
        if "=" in word:
            found.append(user_source(word))
        elif word not in ours:
            raise InvalidRequestError(f"no source {word!r}; there are {', '.join(ours)}, or name=PATH,language=en")
        elif folder is None or not ours[word].paths(folder):
            raise InvalidRequestError(f"source {word}: its files ({', '.join(ours[word].files)}) are not under --data")
        else:
            found.append(ours[word])
    names = [source.name for source in found]
    if len(set(names)) < len(names):
        raise InvalidRequestError(f"two sources of one name in {', '.join(names)}")
    return found


def user_source(word: str) -> TextSource:
    """`name=PATH,language=en,licence=...`: a .jsonl, .txt or .md file (or .zst of it), or a folder of them."""
    first, *rest = word.split(",")
    name, _, place = first.partition("=")
    options = dict(part.partition("=")[::2] for part in rest)
    path = Path(place).expanduser()
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name):
        raise InvalidRequestError(f"source name {name!r}: lower-case letters, digits, dots and hyphens, at most 64")
    if unknown := set(options) - {"language", "licence"}:
        raise InvalidRequestError(
            f"source {name}: unknown option {sorted(unknown)[0]!r}; there are language and licence"
        )
    if (language := options.get("language", "")) not in ("", *LANGUAGES):
        raise InvalidRequestError(f"source {name}: language {language!r}; there are {', '.join(LANGUAGES)}")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    usable = [file for file in files if file.name.endswith(readers.USER_SUFFIXES)]
    if not usable:
        raise InvalidRequestError(f"source {name}: no file at {place} that ends in {', '.join(readers.USER_SUFFIXES)}")
    return TextSource(
        name=name,
        files=tuple(str(file.resolve()) for file in usable),
        licence=options.get("licence", "not stated"),
        origin="given on the command line",
        language=language,
        reader=readers.by_suffix,
        cleaner=clean.regular,
        filters=WEB,
        word=word,
    )
