"""Graders of free text: a number at the end, a span out of a given text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from smelt.evals.grade import Grade

# Thousands marks as in 1,234.5; a German 1.234,5 is read by `numbers` when it can be nothing else.
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")
_ARTICLES = {
    "en": re.compile(r"\b(a|an|the)\b"),
    "de": re.compile(r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
}
_CJK = re.compile(r"[㐀-䶿一-鿿豈-﫿]")


def grade_number(sought: str, text: str) -> Grade:
    """Right when the last number of the text equals the one sought, in value."""
    found = numbers(text)
    return Grade(exact=bool(found) and found[-1] == number(sought))


def numbers(text: str) -> list[Decimal]:
    """Every number of the text in order."""
    plain = unicodedata.normalize("NFKC", text)
    return [value for match in _NUMBER.finditer(plain) if (value := number(match[0])) is not None]


def number(text: str) -> Decimal | None:
    """The value of a written number: 1,234.50, 1.234,50 or 1234.5; a lone mark before exactly three digits parts
    thousands when it is a comma, decimals when it is a point. None for what is no number.
    """
    plain = unicodedata.normalize("NFKC", text).strip()
    points, commas = plain.count("."), plain.count(",")
    if points and commas:
        decimal = max(plain.rfind("."), plain.rfind(","))
        plain = re.sub(r"[.,]", "", plain[:decimal]) + "." + plain[decimal + 1 :]
    elif commas > 1 or points > 1 or re.fullmatch(r"-?\d{1,3},\d{3}", plain):
        plain = re.sub(r"[.,]", "", plain)
    else:
        plain = plain.replace(",", ".")
    try:
        return Decimal(plain).normalize()
    except InvalidOperation:
        return None


def grade_span(accepted: Sequence[str], text: str, language: str) -> Grade:
    """SQuAD's exact match and F1, the best over the accepted answers; Chinese by characters (as CMRC and MLQA do)."""
    given = span_tokens(text, language)
    exact = any(given == span_tokens(one, language) for one in accepted)
    return Grade(exact=exact, f1=max(_overlap(given, span_tokens(one, language)) for one in accepted))


def span_tokens(text: str, language: str) -> list[str]:
    """Lower case, without punctuation and articles; words, and every Chinese character by itself."""
    plain = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(" " if unicodedata.category(char).startswith("P") else char for char in plain)
    if language in _ARTICLES:
        plain = _ARTICLES[language].sub(" ", plain)
    return _CJK.sub(lambda char: f" {char[0]} ", plain).split()


def _overlap(given: list[str], sought: list[str]) -> float:
    common = sum((Counter(given) & Counter(sought)).values())
    if not given or not sought:
        return float(given == sought)
    return 2 * common / (len(given) + len(sought))
