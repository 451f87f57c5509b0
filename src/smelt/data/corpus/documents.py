"""One text to learn from, and what a reader hands over before it is one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import urlsplit

LANGUAGES = ("en", "de", "zh")
"""Languages the filters know; a document in another one is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text with its origin.

    `language` is an ISO 639-1 code, `key` names the document inside its source (a URL, a path, a line number).
    Documents of one `group` (levels of one text, translations) never stand on both sides of the held-out split;
    without a group the text itself decides.
    """

    text: str
    source: str
    language: str
    key: str
    group: str = ""

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode("utf-8", "replace"))

    @property
    def host(self) -> str:
        """Host of the key where the key is a URL, else ''."""
        return (urlsplit(self.key).hostname or "") if "://" in self.key else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawText:
    """What a reader found: a text, or None with the `fault` that made it unusable. '' as language: the source's."""

    key: str
    text: str | None
    language: str = ""
    group: str = ""
    fault: str = ""


def digest(text: str) -> bytes:
    """16 bytes that two texts share exactly if they differ in nothing but case and white space."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode("utf-8", "replace"), digest_size=16).digest()


def short_hash(text: str) -> str:
    """How drop tables and logs name a text without showing it: 16 hexadecimal digits."""
    return digest(text).hex()[:16]
