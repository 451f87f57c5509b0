"""Gopher's and C4's rules of quality (Rae et al. 2021, appendix A; Raffel et al. 2020), aware of the language.

Thresholds are the papers'; where Chinese has no words, characters count (two for a word) and n-grams are twice as long.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from smelt.data.corpus.filters import Filter
from smelt.data.corpus.page import Page
from smelt.data.corpus.tokens import U64, ngrams

_STOP_WORDS: Mapping[str, frozenset[str]] = {
    "en": frozenset("the be to of and that have with is in a was for on it are as".split()),
    "de": frozenset("der die das und ist von zu mit den dem ein eine in im auf nicht sich war des".split()),
    "zh": frozenset("的是在了和有为不这人中一上大他我也就到于由以及其与后并被从"),
}
_BULLET = re.compile(r"[-*•●○‣▪■□◦·–]\s|\d{1,3}[.)、]\s")
_ENDS_SENTENCE = re.compile(r"[.!?:;…。！？：；][\"'”’»)\]）」』]*$|[a-zäöüß]{2}[.!?] [A-ZÄÖÜ]|[。！？].")
_BOILERPLATE = re.compile(
    r"lorem ipsum|please enable javascript|javascript (?:is )?disabled|cookies? (?:policy|to improve your)"
    r"|terms of (?:use|service) and privacy policy|wir verwenden cookies|diese website (?:benutzt|verwendet) cookies"
    r"|bitte aktivieren sie javascript|本网站使用cookie|请启用javascript|版权所有 侵权必究",
    re.IGNORECASE,
)
_MOJIBAKE = re.compile("Ã[\u0080-\u00bf]|â€|\ufffd|锟斤拷|烫烫")
_MIN_REPEATS = 12  # a short entry may well say the long name of its subject ten times
_MEAN_WORD_LEN = {"en": (3.0, 10.0), "de": (3.0, 12.0)}


def length(min_units: int = 50, max_units: int = 100_000) -> Filter:
    """Gopher: 50 to 100,000 words; a Chinese word is two characters."""

    def rule(page: Page) -> str | None:
        return None if min_units <= page.num_units <= max_units else f"{page.num_units} words"

    return Filter("length", rule)


def _word_length(page: Page) -> str | None:
    bounds = _MEAN_WORD_LEN.get(page.document.language)
    if bounds is None or not page.words:
        return None
    mean = sum(map(len, page.words)) / len(page.words)
    return None if bounds[0] <= mean <= bounds[1] else f"mean word of {mean:.1f} characters"


def _symbols(page: Page) -> str | None:
    count = page.text.count("#") + page.text.count("...") + page.text.count("…") + page.text.count("|")
    share = count / max(1, page.num_units)
    return None if share <= 0.1 else f"{share:.2f} symbols a word"


def _letters(page: Page) -> str | None:
    if page.is_chinese:
        share = page.num_han / max(1, page.num_han + 2 * sum(map(str.isascii, page.words)))
        return None if share >= 0.5 else f"{share:.2f} of the words are Chinese"
    share = 1 - sum(map(str.isdecimal, page.words)) / max(1, len(page.words))
    return None if share >= 0.7 else f"{share:.2f} of the words have letters"  # Gopher: .8; "10.433" is two here


def _stop_words(page: Page) -> str | None:
    wanted = _STOP_WORDS[page.document.language]
    found = sum(1 for word in wanted if (word in page.text if page.is_chinese else word in page.counts))
    return None if found >= 2 else f"{found} different stop words"


def _list_lines(page: Page) -> str | None:
    lines = page.lines
    bullets = sum(1 for line in lines if _BULLET.match(line)) / max(1, len(lines))
    if bullets > 0.9:
        return f"{bullets:.2f} of lines are bullets"
    num_ellipses = sum(1 for line in lines if line.endswith(("...", "…")))
    ellipses = num_ellipses / max(1, len(lines))
    return None if ellipses <= 0.3 or num_ellipses < 4 else f"{ellipses:.2f} of lines end in an ellipsis"


def _sentences(page: Page) -> str | None:
    """FineWeb's rules, weighed by the lines' length: lines with the end of a sentence, lines long enough for one."""
    total = sum(map(len, page.lines))
    ended = sum(len(line) for line in page.lines if _ENDS_SENTENCE.search(line)) / max(1, total)
    if ended < 0.5:
        return f"{ended:.2f} of the text in lines with a sentence"
    limit = 15 if page.is_chinese else 30
    short = sum(len(line) for line in page.lines if len(line) < limit) / max(1, total)
    return None if short <= 0.4 else f"{short:.2f} of the text in short lines"


def _repeated_lines(page: Page) -> str | None:
    counted = Counter(page.lines)
    chars = sum(len(line) * (count - 1) for line, count in counted.items()) / max(1, sum(map(len, page.lines)))
    return None if chars <= 0.2 else f"{chars:.2f} of characters in repeated lines"


def _repeated_ngrams(page: Page) -> str | None:
    """Share of the text in the commonest 2- to 4-gram, then in all repeated 5- and 10-grams."""
    factor = 2 if page.is_chinese else 1
    hashes = page.hashes
    if len(hashes) < 100 * factor:
        return None
    for size, limit in ((2, 0.20), (3, 0.18), (4, 0.16)):
        _, counts = np.unique(ngrams(hashes, size * factor), return_counts=True)
        share = float(counts.max()) * size * factor / len(hashes)
        if share > limit and counts.max() >= _MIN_REPEATS:
            return f"one {size * factor}-gram is {share:.2f} of the text"
    for size, limit in ((5, 0.35), (10, 0.25)):  # wider than Gopher's .15/.10: lists of an encyclopedia repeat forms
        if (share := repeated_share(hashes, size * factor)) > limit:
            return f"{share:.2f} of the text in repeated {size * factor}-grams"
    return None


def repeated_share(hashes: U64, num_tokens: int) -> float:
    """Share of tokens that stand in an n-gram which stood in the text before."""
    grams = ngrams(hashes, num_tokens)
    if not len(grams):
        return 0.0
    _, first = np.unique(grams, return_index=True)
    repeated = np.ones(len(grams), bool)
    repeated[first] = False
    edges = np.zeros(len(hashes) + 1, np.int32)
    edges[:-num_tokens] += repeated
    edges[num_tokens:] -= repeated
    return float(np.mean(np.cumsum(edges[:-1]) > 0))


def _boilerplate(page: Page) -> str | None:
    found = _BOILERPLATE.search(page.text)
    return "boilerplate phrase" if found and page.num_units < 1000 else None


def _braces(page: Page) -> str | None:
    """C4 drops every page with a brace; here code must make up a part, so that one template leftover costs nothing."""
    count = page.text.count("{") + page.text.count("}") + page.text.count(";\n")
    return None if count <= max(4, 0.02 * page.num_units) else f"{count} braces"


def _broken(page: Page) -> str | None:
    count = len(_MOJIBAKE.findall(page.text))
    return None if count <= max(2, 0.005 * page.num_units) else f"{count} broken characters"


WORD_LENGTH = Filter("word length", _word_length)
SYMBOLS = Filter("symbols", _symbols)
LETTERS = Filter("letters", _letters)
STOP_WORDS = Filter("stop words", _stop_words)
LIST_LINES = Filter("list lines", _list_lines)
SENTENCES = Filter("no sentences", _sentences)
REPEATED_LINES = Filter("repeated lines", _repeated_lines)
REPEATED_NGRAMS = Filter("repeated n-grams", _repeated_ngrams)
BOILERPLATE = Filter("boilerplate", _boilerplate)
BRACES = Filter("braces", _braces)
BROKEN = Filter("broken characters", _broken)
