"""Phrase lists: what can be said in which words, apart for training and for the test.

A file `catalog/<file>.txt` holds blocks `[name] rest` with lines `en: a | b || c`. What stands behind `||` belongs to
the held-out test and is never said in training; a list without `||` serves both (an answer that must stay the same).
Several lines of one language add up. `\\n` is a line break.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from smelt.core.errors import SmeltError
from smelt.data.tasks.catalog import LANGUAGES, roles
from smelt.data.tasks.values import Split, Values

_SLOT = re.compile(r"(\{\w+\})")


@dataclass(kw_only=True)
class Entry:
    """One list: the words of its head, and the phrases by language and split."""

    rest: str = ""
    said: dict[tuple[str, Split], tuple[str, ...]] = field(default_factory=dict)


@functools.cache
def entries(file: str) -> dict[str, Entry]:
    """The lists of `catalog/<file>.txt` by name."""
    text = (resources.files("smelt.data.tasks") / "catalog" / f"{file}.txt").read_text("utf-8")
    found: dict[str, Entry] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            name, _, rest = line[1:].partition("]")
            current = found.setdefault(name, Entry(rest=rest.strip()))
            continue
        language, mark, said = line.partition(":")
        if language not in LANGUAGES or not mark:
            raise SmeltError(f"{file}.txt: a line begins with one of {LANGUAGES} and a colon, found {line[:40]!r}")
        _add(current, language, said)
    return found


def _add(entry: Entry, language: str, said: str) -> None:
    train, apart, test = said.partition(" || ")
    halves: tuple[tuple[Split, str], ...] = (("train", train), ("test", test if apart else train))
    for split, half in halves:
        phrases = tuple(part.strip().replace("\\n", "\n") for part in half.split(" | "))
        entry.said[language, split] = entry.said.get((language, split), ()) + phrases


def options(v: Values, key: str, language: str | None = None) -> tuple[str, ...]:
    """The phrases of `file/name` for the conversation's language and split."""
    file, _, name = key.partition("/")
    try:
        return entries(file)[name].said[language or v.language, v.split]
    except KeyError:
        raise SmeltError(f"no phrases {key!r} in {language or v.language!r} for {v.split!r}") from None


def known(key: str) -> bool:
    """Whether there is a list `file/name`."""
    file, _, name = key.partition("/")
    return name in entries(file)


def phrase(v: Values, key: str, /, language: str | None = None, **slots: str) -> str:
    """One phrase of `file/name`, its `{slots}` filled."""
    return woven(v.pick(options(v, key, language)), slots)


@functools.lru_cache(maxsize=20_000)
def _pieces(template: str) -> tuple[str, ...]:
    return tuple(_SLOT.split(template))


def woven(template: str, slots: Mapping[str, str]) -> str:
    """The template with its slots said; a value does not run into the letters or digits before it."""
    said = ""
    for i, piece in enumerate(_pieces(template)):
        text = slots[piece[1:-1]] if i % 2 else piece
        if i % 2 and said and text and _wordlike(said[-1]) and _wordlike(text[0]):
            said += " "
        said += text
    return said


def _wordlike(char: str) -> bool:
    return char.isascii() and char.isalnum()


def mentions(template: str) -> tuple[str, ...]:
    """The slots of a template, in their order."""
    return tuple(piece[1:-1] for piece in _pieces(template)[1::2])


def sentence(text: str, language: str) -> str:
    """A clause as a sentence: first letter large, a stop behind it."""
    if language == "zh":
        return text if text[-1] in "。！？" else text + "。"
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


_ARTICLES = {"m": ("der", "den"), "f": ("die", "die"), "n": ("das", "das"), "p": ("die", "die")}


@functools.cache
def genders() -> dict[str, str]:
    """German gender of every role's label: m, f, n, p (plural)."""
    return {name: entry.rest for name, entry in entries("genders").items()}


def label_slots(role: str, language: str) -> dict[str, str]:
    """How a role is called: {l} bare, {the} with its article, {den} the same as an object, {L} with a large letter."""
    label = roles()[role].labels[language]
    the = den = label
    if language == "en":
        the = den = f"the {label}"
    elif language == "de":
        the, den = (f"{article} {label}" for article in _ARTICLES[genders()[role]])
    return {"l": label, "the": the, "den": den, "L": label[0].upper() + label[1:]}
