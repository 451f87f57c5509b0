"""Reads the catalogues: tools, records, service intents and word lists as plain text files beside this module.

A file holds blocks `[head] rest`, each with lines `key: a | b`, `lang> a | b` (what users say) and
`lang= a` (what the assistant answers). `#` starts a comment line; `\\n` in a text is a line break.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources

from smelt.core.errors import SmeltError

LANGUAGES = ("en", "de", "zh")
_PIECE = re.compile(r"^(?P<key>\w+)(?P<mark>[:>=?]) ?(?P<value>.*)$", re.DOTALL)


@dataclass(kw_only=True)
class Block:
    """One entry: its head, what follows the head, and per language descriptions, user texts and replies."""

    names: list[str]
    rest: str = ""
    roles: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoleSpec:
    """What a parameter or a field means: value kind, property names, label and description per language."""

    name: str
    kind: str
    properties: tuple[str, ...]
    labels: dict[str, str]
    descriptions: dict[str, str]


def _lines(name: str) -> Iterator[str]:
    text = (resources.files("smelt.data.tasks") / "catalog" / name).read_text("utf-8")
    return (line for line in text.splitlines() if line and not line.startswith("#"))


def _split(text: str) -> list[str]:
    return [part.strip().replace("\\n", "\n") for part in text.split(" | ")]


@functools.cache
def blocks(name: str) -> tuple[Block, ...]:
    """The entries of the catalogue file `name`."""
    found: list[Block] = []
    for line in _lines(name):
        if line.startswith("["):
            head, _, rest = line[1:].partition("]")
            found.append(Block(names=[part.strip() for part in head.split("/")], rest=rest.strip()))
        elif line.startswith("? "):
            found[-1].roles = line[2:].split()
        else:
            _read_line(found[-1], line)
    return tuple(found)


def _read_line(block: Block, line: str) -> None:
    if line.startswith("key:"):
        for part in _split(line[4:]):
            language, _, phrase = part.partition(" ")
            block.keys[language] = phrase
        return
    language = ""
    for part in _split(line):
        match = _PIECE.match(part)
        if match and match["key"] in LANGUAGES:
            language, mark, part = match["key"], match["mark"], match["value"].strip()
        elif not language:
            raise SmeltError(f"catalogue line names no language: {line!r}")
        if mark == ">":
            block.said.setdefault(language, []).append(part)
        elif mark == "=":
            block.replies[language] = part
        else:
            block.texts.setdefault(language, []).append(part)


@functools.cache
def roles() -> dict[str, RoleSpec]:
    """Every role by name."""
    found = {}
    for line in _lines("roles.txt"):
        name, kind, properties, *described = _split(line)
        halves = [part.split("; ") for part in described]
        found[name] = RoleSpec(
            name=name,
            kind=kind,
            properties=tuple(properties.split(",")),
            labels={lang: half[0] for lang, half in zip(LANGUAGES, halves, strict=True)},
            descriptions={lang: half[1] for lang, half in zip(LANGUAGES, halves, strict=True)},
        )
    return found


@functools.cache
def words(name: str) -> tuple[str, ...]:
    """The word list `name` ("city.de", "currency")."""
    if name not in (lists := _word_lists("values.txt")):
        raise SmeltError(f"no word list {name!r} in values.txt")
    return lists[name]


def more_words(name: str) -> tuple[str, ...]:
    """Further words of the list `name` that training has to itself, or none."""
    return _word_lists("values_more.txt").get(name, ())


@functools.cache
def _word_lists(file: str) -> dict[str, tuple[str, ...]]:
    found = {}
    for line in _lines(file):
        head, _, rest = line.partition(": ")
        found[head] = tuple(rest) if head == "chars.zh" else tuple(word.strip() for word in rest.split(", "))
    return found


@functools.cache
def nouns() -> tuple[tuple[str, dict[str, str]], ...]:
    """Nouns for invented tools: identifier and the word in each language."""
    rows = (_split(line) for line in _lines("nouns.txt"))
    return tuple((row[0], dict(zip(LANGUAGES, row[1:], strict=True))) for row in rows)
