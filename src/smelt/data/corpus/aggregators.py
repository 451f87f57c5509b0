"""Pages, and then whole sites, that are there to collect people's addresses and numbers.

A page goes when records stand close together: a contact (phone, e-mail, street address, date of birth or relatives)
next to what looks like a name, at least three to 200 words and four in all. A host whose pages mostly go, goes whole.
One imprint, one office address or a biography is no such page; its contacts are masked (`personal`).
"""

from __future__ import annotations

import re
from collections import Counter

from smelt.data.corpus.filters import Filter
from smelt.data.corpus.page import Page

MIN_RECORDS = 4
MIN_DENSITY = 3.0  # records per 200 words
HOST_MIN_PAGES = 20
HOST_SHARE = 0.5

_ADDRESSES = {
    "en": re.compile(
        r"\b\d{1,5} (?:[NSEW]\.? )?(?:[A-Z][\w'.-]* ){1,4}(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard"
        r"|Blvd|Court|Ct|Way|Place|Pl|Terrace|Circle|Close|Apt)\b"
    ),
    "de": re.compile(
        r"\b[A-ZÄÖÜ][\wäöüß.-]*(?:straße|strasse|str\.|weg|platz|allee|gasse|ring|damm|ufer)\s\d{1,4}\s?[a-z]?\b"
        r"|\b[A-ZÄÖÜ][\wäöüß-]+er (?:Straße|Str\.|Weg|Platz|Allee)\s\d{1,4}\b"
    ),
    "zh": re.compile(
        r"(?:[\u4e00-\u9fff]{1,8}(?:路|街|大道|巷|弄|胡同|小区|村))\d{1,5}号?|\d{1,3}[号栋幢]楼?\d{0,2}(?:单元)?\d{3,4}室"
    ),
}
_DETAILS = re.compile(
    r"\b(?:age|aged|born|dob|date of birth|relatives|related to|also known as|lives in|geboren|geb\.|geburtsdatum"
    r"|verwandte|wohnhaft in)\b[: ]|(?:年龄|出生日期|身份证号?|住址|家庭住址|亲属)[:：]",
    re.IGNORECASE,
)
_NAMES = {
    "en": re.compile(r"\b[A-Z][a-z]+ (?:[A-Z]\.? )?[A-Z][a-z]+\b|\b[A-Z]{2,}, [A-Z][a-z]+\b"),
    "de": re.compile(r"\b[A-ZÄÖÜ][a-zäöüß]+ [A-ZÄÖÜ][a-zäöüß]+\b"),
    "zh": re.compile(r"(?:姓名|联系人|先生|女士|[\u4e00-\u9fff]{2,3}(?=[ ,，:：\t]))"),
}
_PRIVATE = ("email", "phone", "national id")
_NEAR_CHARS = {"en": 90, "de": 90, "zh": 40}


def records(page: Page) -> int:
    """Contacts that stand next to a name; a name counts for one contact of each kind."""
    language = page.document.language
    contacts = Counter[str]()
    used: set[tuple[str, int]] = set()
    found = [(span.start, span.kind) for span in page.personal_spans if span.kind in _PRIVATE]
    found += [(match.start(), "address") for match in _ADDRESSES[language].finditer(page.text)]
    if not found:
        return 0
    found += [(match.start(), "detail") for match in _DETAILS.finditer(page.text)]
    names = [match.start() for match in _NAMES[language].finditer(page.text)]
    for at, kind in sorted(found):
        near = [name for name in names if 0 < at - name <= _NEAR_CHARS[language]]
        if near and (kind, near[-1]) not in used:
            used.add((kind, near[-1]))
            contacts[kind] += 1
    return contacts.total() if any(contacts[kind] for kind in _PRIVATE) else 0


def _aggregates(page: Page) -> str | None:
    if not any(mark in page.text for mark in "0123456789@"):
        return None
    count = records(page)
    density = 200 * count / max(page.num_units, 50)
    return None if count < MIN_RECORDS or density < MIN_DENSITY else f"{density:.1f} records per 200 words"


def hosts_to_drop(num_pages: Counter[str], num_dropped: Counter[str]) -> set[str]:
    """Hosts with at least 20 pages of which half or more aggregate personal data."""
    return {
        host
        for host, count in num_pages.items()
        if host and count >= HOST_MIN_PAGES and num_dropped[host] >= HOST_SHARE * count
    }


AGGREGATOR = Filter("personal data", _aggregates)
