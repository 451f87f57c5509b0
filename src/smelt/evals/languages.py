"""Which language a text is in, among those that IFEval asks for: by script, then by its commonest small words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SCRIPTS = {
    "DEVANAGARI": ("hi", "mr", "ne"),
    "ARABIC": ("ar", "fa", "ur"),
    "LATIN": ("en", "de", "es", "fi", "fr", "it", "pt", "sw", "vi"),
    "CYRILLIC": ("bg", "ru"),
    "KANNADA": ("kn",),
    "GURMUKHI": ("pa",),
    "BENGALI": ("bn",),
    "TELUGU": ("te",),
    "TAMIL": ("ta",),
    "GUJARATI": ("gu",),
    "THAI": ("th",),
    "HANGUL": ("ko",),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "CJK": ("zh",),
    "GREEK": ("el",),
    "HEBREW": ("he",),
}
_WORDS = {
    "en": "the of and to in is that it for was with are this you be on not",
    "de": "der die das und ist nicht ein eine ich zu mit den von auf für es sie wir",
    "es": "el los las y es que un una no en del por con para su más pero",
    "fi": "ja on ei se että oli hän ovat kun mutta niin tai joka myös voi minä",
    "fr": "le les et est une des que pas dans qui pour sur avec il ce vous",
    "it": "il di che è e la un una non per sono con del gli della ma questo",
    "pt": "o os as e é um uma não que de em para com do da no na mais",
    "sw": "na ya wa kwa ni katika la za kuwa hii huu lakini yake wake sana cha",
    "vi": "và là của có không được cho một các những này trong người với tôi khi",
    "hi": "है और के में की को से का हैं यह पर नहीं एक भी कि",
    "mr": "आहे आणि च्या या मध्ये आहेत नाही हे ते एक तो ती मी होते असे",
    "ne": "छ र को मा छन् हो पनि यो हुन्छ गर्न भएको लागि छैन तर एक",
    "ar": "في من على أن إلى هذا التي الذي لا ما هو كان مع عن هذه",
    "fa": "و در به از که این است را با برای آن می یک های شود",
    "ur": "کے میں کی ہے اور سے کا کو پر یہ نہیں ہیں ایک کر بھی",
    "bg": "на и да се за от не е са в че по със като това",
    "ru": "и в не на что я с он как это по но из у за",
}
_VOCABULARY = {language: frozenset(words.split()) for language, words in _WORDS.items()}


def guess_language(text: str) -> str | None:
    """ISO 639-1 code of the language most of the text is written in; None where there are no letters."""
    scripts = Counter(name for char in text if char.isalpha() and (name := _script(char)) is not None)
    if not scripts:
        return None
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * scripts.total():
        return "ja"
    languages = _SCRIPTS[scripts.most_common(1)[0][0]]
    if len(languages) == 1:
        return languages[0]
    words = re.findall(r"[^\W\d_]+(?:[\u0900-\u0903\u093a-\u094f]+[^\W\d_]*)*", text.lower())
    hits = {language: sum(word in _VOCABULARY[language] for word in words) for language in languages}
    return max(hits, key=lambda language: hits[language])


def _script(char: str) -> str | None:
    name = unicodedata.name(char, "").split(" ")[0].split("-")[0]
    return name if name in _SCRIPTS else None
