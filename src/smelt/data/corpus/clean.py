"""Raw text made regular before anything looks at it: Unicode, white space, what an extractor left behind."""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opencc import OpenCC

_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ufff9-\ufffc]"
)
_SPACES = re.compile(r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f]+")
_TRAILING = re.compile(r" +(?=\n|$)")
_BLANK_LINES = re.compile(r"\n{3,}")
_EMPTY_BRACKETS = re.compile(r" ?(?:\([\s,;:–\]-]*\)|（[\s，、；：,;:–-]*）|\[\s*\]|「」|《》)")
_OPEN_LEFTOVER = re.compile(r"(?<=[(（])[\s,;，；、]+")
_FORMULA = re.compile(r"formula_\d")  # no word boundary: it may stand right beside Chinese
_TAG = re.compile(
    r"</?(?:ref|br|div|span|small|sup|sub|nowiki|gallery|references|onlyinclude|poem|i|b)\b[^<>\n]{0,200}>"
)
_BARE_VALUE = re.compile(r"[\d\s.,+\-−×÷=/%°<>≤≥()|*^]*")
_MARKUP_LINE = re.compile(
    r"\{\{|\}\}|\|\||#(?:if|ifeq|ifexist|switch|expr|invoke):|^ ?[|!{]|^em;|</?(?:score|math|timeline|imagemap)\b"
    r"|\b(?:height|width|margin(?:-\w+)?|padding|background(?:-color)?|text-align|font-size|color|border)\s*:\s*[#\w.]+;"
    r"|\b(?:align|valign|style|bgcolor|colspan|rowspan|cellpadding|class)\s*=\s*[\"\w#]"
)
_HEADING = re.compile(r"[^。，；：,;:!?！？]{0,38}[\u4e00-\u9fff\w）)]\.")
_DANGLING = re.compile(  # a last line that led to links or tables which are gone
    r".*[:：]|(?:See also|References|External links|Notes|Further reading|Bibliography|Sources|Footnotes|Gallery)\."
)
_ROLE_LINE = re.compile(r"(?m)^:(?:label|width|height|begin_tab|end_tab|eqlabel):.*\n?")
_ROLE = re.compile(r":(?:numref|cite|citet|eqref|ref):`[^`]*`[ ]?")
_WIKI_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")


def regular(text: str) -> str:
    """NFC, LF line ends, no control or zero-width characters, single spaces, at most one blank line. Idempotent."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = _CONTROL.sub("", text)
    text = _SPACES.sub(" ", text)
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()


def code_safe(text: str) -> str:
    """As `regular`, but spaces stay: indentation means something in technical text."""
    text = _CONTROL.sub("", unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")))
    return _BLANK_LINES.sub("\n\n", re.sub(r"[ \t]+(?=\n|$)", "", text)).strip("\n")


def encyclopedia(text: str) -> str:
    """A page out of WikiExtractor: entities read; tags, empty brackets, lines of markup or lost formulas taken out."""
    text = html.unescape(html.unescape(text))  # they are escaped twice where the wiki text had an entity itself
    text = _WIKI_LINK.sub(r"\1", _TAG.sub("", text))
    text = _OPEN_LEFTOVER.sub("", _EMPTY_BRACKETS.sub("", text))
    lines = [line for line in text.split("\n") if not (_MARKUP_LINE.search(line) or _FORMULA.search(line))]
    lines = [line for i, line in enumerate(lines) if i == 0 or not line.strip() or line != lines[i - 1]]
    while lines and (not lines[-1].strip() or _DANGLING.fullmatch(lines[-1].strip())):
        lines.pop()
    return regular("\n".join(_with_content(lines)))


def _with_content(lines: list[str]) -> list[str]:
    """Without Chinese headings ("生平.") that nothing stands under; WikiExtractor ends every heading with a point."""
    found: list[str] = []
    below = False
    for line in reversed(lines):
        heading = line.endswith(".") and _HEADING.fullmatch(line) is not None and "\u4e00" <= line[0] <= "\u9fff"
        if heading and not below:
            continue
        below = below and not line.strip() or not heading
        found.append(line)
    return found[::-1]


def textbook(text: str) -> str:
    """A module out of CNXML: table cells and formulas stood on lines of their own; bare numbers go."""
    return regular("\n".join(line for line in text.split("\n") if not _BARE_VALUE.fullmatch(line) or not line))


def chapter(text: str) -> str:
    """A chapter of a notebook book: labels and references go, which only its own builder can follow."""
    return code_safe(_ROLE.sub("", _ROLE_LINE.sub("", text)))


def story(text: str) -> str:
    """A picture book in Markdown: page marks and credits go, lines broken for a small page are joined."""
    body = text.split("\n##\n* License:")[0]
    pages = [" ".join(page.split()) for page in re.split(r"\n##[^\n]*\n", "\n" + body)]
    return regular("\n\n".join(page.lstrip("# ") for page in pages if page))


def simplified(text: str) -> str:
    """Chinese in simplified characters, phrase by phrase (OpenCC `t2s`); simplified text stays as it is."""
    converted: str = _converter().convert(text)
    return converted


@functools.cache
def _converter() -> OpenCC:
    from opencc import OpenCC

    return OpenCC("t2s")
