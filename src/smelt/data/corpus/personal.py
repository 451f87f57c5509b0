"""Personal data in running text: found by form and checksum, masked by a placeholder that says what stood there.

Careful both ways: an IBAN, a card, a Chinese or German number must pass its checksum; years, prices, ISBNs, versions
and article numbers stay. A phone number needs a form nothing else has, or a word like "Tel." before it.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

PLACEHOLDERS = {
    "email": "[E-MAIL]",
    "phone": "[PHONE]",
    "iban": "[IBAN]",
    "card": "[CARD]",
    "ip": "[IP]",
    "national id": "[ID]",
}

# Chinese puts no space between words and a number or an address, so its characters end neither.
_HAN = "\u3400-\u9fff"
_LETTER = rf"[^\W{_HAN}]"
_EMAIL = re.compile(
    rf"(?<![.+%@/:-])(?<!{_LETTER})(?:{_LETTER}|[.+%-]){{1,64}}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{{0,62}})\.){{1,6}}"
    rf"[A-Za-z]{{2,24}}(?!{_LETTER}|@)"
)
_RESERVED_HOST = re.compile(
    r"@(?:[\w-]+\.)*(?:example(?:\.(?:com|net|org))?|test|invalid|localhost|local|internal)$", re.I
)
# These begin with a set of characters and not with a look-behind, which makes `re` about five times faster; what may
# not stand before a match is looked at afterwards.
_IPV4 = re.compile(rf"\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?!{_LETTER}|\.\d)")
_IPV6_HINT = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]")
_IPV6 = re.compile(rf"(?<![:.])(?<!{_LETTER})(?:[0-9A-Fa-f]{{1,4}}:|:){{2,7}}[0-9A-Fa-f]{{1,4}}(?!{_LETTER}|:)")
_IBAN = re.compile(r"[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_PENSION_ID = re.compile(r"\d{2}[ ]?\d{6}[ ]?[A-Z][ ]?\d{3}(?![A-Za-z0-9])")
_KNOWN_ADDRESSES = frozenset({"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222"})
_STUCK = re.compile(r"[A-Za-z0-9.]$")
_UNITS = "元年月号页台人件万亿米克个次册卷亩吨"  # a number before one of these counts something
_NUMBER = re.compile(rf"[+(\d](?:[ ().\-/\u2013]{{0,2}}\d){{6,22}}[Xx]?(?!{_LETTER}|[%{_UNITS}]|[.,/:-]\d)")
_STUCK_NUMBER = re.compile(rf"(?:{_LETTER}|[.,/%=#$€£¥:+\-−–—×)\]])$")
_NOT_A_PHONE = re.compile(
    r"(?:isbn|issn|oclc|doi|pmid|lccn|ean|gtin|art(?:ikel|\.)?|nr|no|num(?:ber|mer)?|id|code|编号|货号|型号|书号|第|v|version)"
    r"[-.:#s ：]{0,4}(?:10|13)?[:： ]{0,2}$",
    re.IGNORECASE,
)
_PHONE_WORD = re.compile(
    r"(?:telefon(?:nummer)?|telephone|phone(?: number)?|\b(?:tel|fon|fax|mobile?|handy|cell|call|ruf(?:nummer)?)"
    r"|whatsapp|电话|手机|热线|传真|致电|微信)[^\w\n]{0,4}(?:is|at|us at|us on|on|nr|no|unter|us)?[.:： ]{0,3}$",
    re.IGNORECASE,
)
_TAX_WORD = re.compile(
    r"(?:steuer-?(?:id|identifikationsnummer)|idnr|tax id)[^\w\n]{0,3}(?:nr)?[.: ]{0,3}$", re.IGNORECASE
)
_SSN = re.compile(r"(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}")
_CARD = re.compile(r"\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -]?)\d{6}\2\d{5}")
_PHONE_FORMS = (
    re.compile(r"\+(?!\d+\.\d+$)[1-9][\d ().\-/\u2013]{6,24}"),
    re.compile(r"(?:1[ .-])?\(?[2-9]\d{2}\)?[ .-][2-9]\d{2}[.-]\d{4}"),
    re.compile(r"\([2-9]\d{2}\) ?[2-9]\d{2}[ .-]?\d{4}"),
    re.compile(r"\(0\d{2,5}\) ?/? ?\d[\d -]{3,10}"),
    re.compile(r"0\d{2,4} ?/ ?\d{3,}[\d -]{0,8}"),
    re.compile(r"0\d{2,4}[ ]?[–-][ ]?\d{6,9}"),
    re.compile(r"01[5-7]\d ?\d{7,8}"),
    re.compile(r"0[1-9]\d{1,3} \d{3,6}[ -]\d{2,5}"),  # 020 7946 0021, 040 66969-144
    re.compile(r"0[1-9]\d{2,4} \d{6,7}"),  # 01632 960331
    re.compile(r"1(?:3\d|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])[ -]?\d{4}[ -]?\d{4}(?<!0000)"),
    re.compile(r"[48]00-\d{3}-\d{4}|[48]00-\d{4}-\d{3}"),
)
_YEARS = re.compile(r"(?:1[0-9]|20)\d\d ?[-/\u2013] ?(?:1[0-9]|20)?\d\d")
_DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}")


@dataclass(frozen=True, slots=True)
class Span:
    """`text[start:end]` is personal data of a `kind`, a key of PLACEHOLDERS."""

    start: int
    end: int
    kind: str


def find(text: str) -> list[Span]:
    """All personal data, in order, without overlaps; of two that overlap the more certain kind stays."""
    found: list[Span] = []
    taken: list[tuple[int, int]] = []
    for span in _candidates(text):
        if all(span.end <= start or span.start >= end for start, end in taken):
            found.append(span)
            taken.append((span.start, span.end))
    return sorted(found, key=lambda span: span.start)


def mask(text: str) -> tuple[str, Counter[str]]:
    """The text with placeholders, and how many of each kind were put in. Masking twice changes nothing."""
    return masked(text, find(text))


def masked(text: str, spans: list[Span]) -> tuple[str, Counter[str]]:
    """As `mask`, with the spans already found."""
    pieces, at = list[str](), 0
    for span in spans:
        pieces += [text[at : span.start], PLACEHOLDERS[span.kind]]
        at = span.end
    return "".join([*pieces, text[at:]]), Counter(span.kind for span in spans)


def _candidates(text: str) -> Iterator[Span]:
    """Most certain kind first."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if not _RESERVED_HOST.search(match.group()):
                yield Span(*match.span(), "email")
    for match in _IBAN.finditer(text):
        if _iban_holds(match.group()) and not _STUCK.search(_before(text, match, 1)):
            yield Span(*match.span(), "iban")
    for pattern in (_IPV4, _IPV6) if _IPV6_HINT.search(text) else (_IPV4,):
        for match in pattern.finditer(text):
            before = _before(text, match, 20)
            if _public_address(match.group()) and not _STUCK.search(before) and not _NOT_A_PHONE.search(before):
                yield Span(*match.span(), "ip")
    for match in _PENSION_ID.finditer(text):
        if _pension_id_holds(match.group()) and not _STUCK.search(_before(text, match, 1)):
            yield Span(*match.span(), "national id")
    for match in _NUMBER.finditer(text):
        before = _before(text, match, 24)
        if not _STUCK_NUMBER.search(before) and (kind := _number_kind(match.group(), before)):
            yield Span(*match.span(), kind)


def _before(text: str, match: re.Match[str], num_chars: int) -> str:
    return text[max(0, match.start() - num_chars) : match.start()]


def _number_kind(number: str, before: str) -> str | None:
    digits = "".join(char for char in number if char.isdigit())
    if len(digits) in (17, 18) and _resident_id_holds(digits + ("X" if number[-1] in "Xx" else "")):
        return "national id"
    if number[-1] in "Xx":
        return None
    if 13 <= len(digits) <= 19 and _CARD.fullmatch(number) and digits[0] in "23456" and luhn_holds(digits):
        return "card"
    if _SSN.fullmatch(number) or (len(digits) == 11 and _TAX_WORD.search(before)):
        return "national id"
    if not 7 <= len(digits) <= 15 or _YEARS.fullmatch(number) or _DATE.fullmatch(number):
        return None
    if _PHONE_WORD.search(before):
        return "phone"
    if _NOT_A_PHONE.search(before):
        return None
    return "phone" if any(form.fullmatch(number) for form in _PHONE_FORMS) else None


def luhn_holds(digits: str) -> bool:
    """ISO/IEC 7812's check digit."""
    total = sum(sum(divmod(2 * int(digit), 10)) if i % 2 else int(digit) for i, digit in enumerate(reversed(digits)))
    return total % 10 == 0 and len(set(digits)) > 1


def _iban_holds(iban: str) -> bool:
    """ISO 13616: moved to the end and read in base 36, country and check digits leave 1 modulo 97."""
    plain = iban.replace(" ", "")
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def _public_address(address: str) -> bool:
    """Global unicast, and no version, paragraph (8.2.2.7), slice (0::2) or well-known resolver."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not found.is_global or found.is_multicast or address in _KNOWN_ADDRESSES:
        return False
    if found.version == 6:
        return found.packed[0] >> 5 == 1 and address.count(":") >= 3  # 2000::/3
    return max(found.packed) >= 64 and not address.endswith(".0.0")


def _resident_id_holds(number: str) -> bool:
    """GB 11643: a date of birth in the middle and a check character modulo 11."""
    if len(number) != 18:
        return False
    try:
        datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * (2 ** (17 - i) % 11) for i, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17]


def _pension_id_holds(number: str) -> bool:
    """German pension insurance number: digits weighted, the letter read as its two-digit place in the alphabet."""
    plain = number.replace(" ", "")
    digits = plain[:8] + f"{ord(plain[8]) - 64:02d}" + plain[9:]
    weights = (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1)
    total = sum(sum(divmod(int(digit) * weight, 10)) for digit, weight in zip(digits[:-1], weights, strict=True))
    return total % 10 == int(digits[-1]) and 1 <= int(plain[2:4]) % 50 <= 31
