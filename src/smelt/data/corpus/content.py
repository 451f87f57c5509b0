"""Hate, adult and spam, found by weighed words against the length of the text and the words of a text *about* it.

A text goes when its points are many, dense, and more than the words that speak for reporting, medicine, law or
history. What stands in quotation marks is not the author's and does not count. This catches rants and advertisements,
not what is hateful in polite words: OpenAI says the same of its own filters.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np

from smelt.data.corpus.documents import LANGUAGES
from smelt.data.corpus.filters import Filter
from smelt.data.corpus.page import WORD, Page

_LINK = re.compile(r"https?://|www\.[a-z0-9-]+\.")
_SENTENCE = re.compile(r"[^.!?。！？\n]*[.!?。！？\n]?")
_SECTION = re.compile(r"\[(\w+)(?: ([\d.]+))?\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A text goes with at least `points`, `density` of them per 100 words, and more than it has about-words.

    The points must come from `variety` different entries.
    """

    points: float
    density: float
    variety: int


_Entry = tuple[float, float]
"""Weight of a term or pattern, and the points it gives a page."""


@dataclass(slots=True)
class WordList:
    """One file of `words/`: weighed terms, phrases and patterns, and the words of texts about the subject.

    `heads` are the first words of `groups`. `keys` names phrases by their longest word (Chinese: first two characters),
    so that a page is searched only for those whose key it has.
    """

    is_chinese: bool = False
    terms: dict[str, float] = field(default_factory=dict)
    phrases: dict[str, float] = field(default_factory=dict)
    patterns: list[tuple[re.Pattern[str], float]] = field(default_factory=list)
    groups: frozenset[str] = frozenset()
    about: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()
    insults: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()
    keys: dict[str, list[str]] = field(default_factory=dict)
    reports: re.Pattern[str] | None = None


LIMITS: Mapping[str, Limits] = {
    "hate": Limits(points=3.5, density=3.0, variety=3),
    "adult": Limits(points=6, density=8.0, variety=6),
    "spam": Limits(points=6, density=9.0, variety=6),
}


INSULT = 1.5  # points of a sentence that names a group of people and an insult
LEARNED_SHARE = 0.5  # of a page's windows
ABOUT_POINTS = 2.0  # what a word of a text about the subject speaks for it


def points(page: Page, subject: str, *, quoted: bool = True) -> tuple[float, int]:
    """(points, different entries) of a page by the lists of its own language and of English.

    One term counts at most as much as all other entries together: it may be a name (Gardner & Dyke, Pussy Riot) or the
    very subject of a page. quoted: count what stands in quotation marks, and in sentences that tell what others say.
    """
    text = page.lower if quoted else _own_words(page, subject)
    terms, patterns = list[_Entry](), list[_Entry]()
    for words in _lists(page, subject):
        terms += _terms(page, text, words)
        patterns += _patterns(page, text, words)
    if max((weight for weight, _ in terms + patterns), default=0.0) < 1:  # words that mean other things as well
        return 0.0, 0
    most = max((score for _, score in terms), default=0.0)
    rest = sum(score for _, score in terms + patterns) - most
    return rest + min(rest, most), len(terms) + len(patterns)


def about(page: Page, subject: str) -> int:
    """How many words of a text about the subject a page has."""
    return sum(
        page.lower.count(word) if not word.isascii() and page.is_chinese else page.counts[word]
        for words in _lists(page, subject)
        for word in words.about
    )


def _own_words(page: Page, subject: str) -> str:
    """The text without quotations and without sentences that report ("he was called a ...", "the slur ...")."""
    text = page.unquoted
    for words in _lists(page, subject):
        if (reports := words.reports) is not None:
            text = " ".join(sentence for sentence in _SENTENCE.findall(text) if not reports.search(sentence))
    return text


def _lists(page: Page, subject: str) -> list[WordList]:
    return [word_list(subject, language) for language in sorted({page.document.language, "en"} & set(LANGUAGES))]


def _terms(page: Page, text: str, words: WordList) -> list[_Entry]:
    """Each term and phrase that is there."""
    there = page.pairs if words.is_chinese else page.counts.keys()
    phrases = [phrase for key in words.keys.keys() & there for phrase in words.keys[key]]
    found = [
        (words.phrases[phrase], words.phrases[phrase] * text.count(phrase)) for phrase in phrases if phrase in text
    ]
    for term in page.counts.keys() & words.terms.keys():  # whole words, of which `text` may hold fewer than the page
        if count := min(page.counts[term], text.count(term)):
            found.append((words.terms[term], words.terms[term] * count))
    return found


def _patterns(page: Page, text: str, words: WordList) -> list[_Entry]:
    """Each pattern that is there; they speak of groups of people, so other pages are not searched."""
    groups = any(group in text for group in words.heads) if page.is_chinese else page.counts.keys() & words.heads
    if not groups:
        return []
    found = [(weight, weight * len(pattern.findall(text))) for pattern, weight in words.patterns]
    if words.insults and page.is_chinese:
        found += [(INSULT, INSULT) for one in _SENTENCE.findall(text) if _either(words.heads, one, words.insults)]
    elif words.insults and page.counts.keys() & words.insults:
        split = (set(WORD.findall(one)) for one in _SENTENCE.findall(text))
        found += [(INSULT, INSULT) for one in split if one & words.heads and one & words.insults]
    return [entry for entry in found if entry[1]]


def _either(groups: frozenset[str], sentence: str, insults: frozenset[str]) -> bool:
    return any(group in sentence for group in groups) and any(insult in sentence for insult in insults)


def _rule(subject: str) -> Filter:
    limits = LIMITS[subject]

    def rule(page: Page) -> str | None:
        if (listed := _listed(page, subject, limits)) is not None:
            return listed
        share = page.learned_shares.get(subject, 0.0)
        return f"{share:.2f} of it reads like {subject}" if share >= LEARNED_SHARE else None

    return Filter(subject, rule)


def _listed(page: Page, subject: str, limits: Limits) -> str | None:
    """What the lists have against a page."""
    units = max(page.num_units, 25)
    least = max(limits.points, limits.density * units / 100)
    score, variety = points(page, subject)
    if variety < limits.variety:  # nearly every page; the rest is looked at in the others only
        return None
    more = _shouting(page) if subject == "spam" else 0.0
    if score + more < least:
        return None
    score, variety = points(page, subject, quoted=False)
    score += more
    if variety < limits.variety or score < least or score <= ABOUT_POINTS * about(page, subject):
        return None
    return f"{100 * score / units:.1f} points per 100 words"


def _shouting(page: Page) -> float:
    """Links, rows of exclamation marks and words in capitals, in points."""
    marks = len(re.findall(r"[!！]{2,}|[★☆✅🔥💰👉➤]", page.text))
    links = len(_LINK.findall(page.lower))
    loud = not page.is_chinese and np.mean((page.codes >= 65) & (page.codes <= 90)) > 0.12  # A to Z; English prose: .04
    capitals = sum(1 for word in page.words if len(word) > 3 and word.isupper()) if loud else 0
    return 0.5 * marks + 0.5 * max(0, links - 2) + (0.2 * capitals if capitals > 0.2 * len(page.words) else 0.0)


@functools.cache
def word_list(subject: str, language: str) -> WordList:
    """The list `words/SUBJECT.LANGUAGE.txt`."""
    found = WordList(is_chinese=language == "zh")
    section, weight = "", 1.0
    text = files("smelt.data.corpus").joinpath("words", f"{subject}.{language}.txt").read_text(encoding="utf-8")
    for line in filter(None, map(str.strip, text.lower().splitlines())):
        if mark := _SECTION.fullmatch(line):
            section, weight = mark[1], float(mark[2] or 1)
        elif section == "groups":
            found.groups |= frozenset(group.replace("_", " ") for group in line.split())
        elif section == "about":
            found.about += tuple(line.split())
        elif section == "insults":
            found.insults |= frozenset(line.split())
        elif section == "reported":
            found.reported += tuple(line.split("|"))
        elif section == "terms":
            # Chinese has no spaces between words, so its terms are looked for like phrases
            (found.phrases if found.is_chinese else found.terms).update(dict.fromkeys(line.split(), weight))
        elif line.startswith("re:"):
            group = "(?:" + "|".join(sorted(found.groups)) + ")"
            found.patterns.append((re.compile(line[3:].replace("{group}", group)), weight))
        else:
            found.phrases |= dict.fromkeys(line.split("|"), weight)
    found.heads = found.groups if found.is_chinese else frozenset(group.split()[0] for group in found.groups)
    for phrase in found.phrases:
        key = phrase[:2] if found.is_chinese else max(WORD.findall(phrase), key=len)
        found.keys.setdefault(key, []).append(phrase)
    if found.reported:
        edge = "" if found.is_chinese else r"\b"
        found.reports = re.compile(f"{edge}(?:{'|'.join(map(re.escape, found.reported))}){edge}")
    return found


HATE = _rule("hate")
ADULT = _rule("adult")
SPAM = _rule("spam")
