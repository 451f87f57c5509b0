"""Which language a text is in, cheaply: its script, then how many of a language's smallest words it uses."""

from __future__ import annotations

import re
from collections.abc import Mapping

from smelt.data.corpus.filters import Filter
from smelt.data.corpus.page import Page

_SMALL_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to in that is was for with as it by on are from this which be at or an have not his my we he",
        "de": "der die das und ist von den dem des ein eine einer nicht mit auf für als auch wurde im zu sich bei war",
        "fr": "le la les et des est une dans que qui pour sur pas du au avec par sont plus ses aux cette ou il",
        "es": "el la los las de que en un una por con para del se es como más su al lo fue sus era",
        "it": "il la di che un una per non con del della sono nel dei gli alla anche più dal come",
        "nl": "de het een en van is dat niet op te zijn voor met er aan werd ook door als bij naar",
        "pt": "os as de que um uma para com não do da em no na por mais dos das foi ao",
        "pl": "na się do jest nie to że od przez po jako dla są był oraz",
    }.items()
}
_KANA = re.compile(r"[\u3040-\u30ff]")
_OTHER_SCRIPTS = re.compile(r"[\u0370-\u05ff\u0600-\u06ff\u0900-\u0dff\u0e00-\u0e7f\uac00-\ud7af]")
_CODE_LINE = re.compile(r"^(?:    |\t|```|`)")


def identify(page: Page) -> str | None:
    """ISO code of the likeliest language, None where too little speaks for any."""
    letters = sum(map(len, page.words))
    if letters < 20:
        return None
    num_kana = 0 if page.text.isascii() else len(_KANA.findall(page.text))
    if page.num_han + num_kana > 0.25 * letters:
        return "ja" if num_kana > 0.15 * letters else "zh"
    if not page.text.isascii() and len(_OTHER_SCRIPTS.findall(page.text)) > 0.4 * letters:
        return "other"
    shares = {name: sum(page.counts[word] for word in words) for name, words in _SMALL_WORDS.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= max(3, 0.08 * len(page.words)) else None


def _foreign(page: Page) -> str | None:
    found = identify(page)
    return None if found in (None, page.document.language) else f"reads like {found}"


LANGUAGE = Filter("language", _foreign)
"""Drops a text that is clearly in another language than its source says; an unclear one stays."""
