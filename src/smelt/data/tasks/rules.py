"""Rules for the form of an answer: how they are set, what they make of an answer, how they are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smelt.data.example import compact_json
from smelt.data.tasks.catalog import LANGUAGES
from smelt.data.tasks.phrases import phrase
from smelt.data.tasks.values import Values

# The order in which they act on an answer; of those on one line at most one is drawn.
_ORDER = (("speak", "value"), ("upper", "lower"), ("bracket",), ("prefix", "suffix"), ("json",))
_MARKS = {
    "en": "Note: Hello! Answer: FYI Captain! Sure: Re: Beep. >> Aye. Dear friend, Reply:".split(" "),
    "de": "Hinweis: Hallo! Antwort: Info: Kapitän! Gern: Betreff: Piep. >> Jawohl. Also, Rückmeldung:".split(" "),
    "zh": "提示： 您好！ 回答： 注意： 船长！ 好的： 回复： 哔。 >> 是。 那么， 反馈：".split(" "),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its kind, its word (a mark, a key, a language) and the sentence that sets it."""

    kind: str
    word: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is to be said: the value asked for and the sentence around it in every language."""

    value: str
    sentences: Mapping[str, str]


def draw_rules(v: Values, count: int) -> list[Rule]:
    """`count` rules that can be kept together, in the order they act."""
    kinds = [v.pick(_ORDER[i]) for i in sorted(v.rng.sample(range(len(_ORDER)), k=count))]
    if "value" in kinds and {"upper", "lower"} & set(kinds):  # a bare number has no case to keep
        kinds[0] = "speak"
    return [_rule(v, kind) for kind in kinds]


def _rule(v: Values, kind: str) -> Rule:
    if kind == "speak":
        word = v.pick([language for language in LANGUAGES if language != v.language])
        return Rule(kind, word, phrase(v, f"rules/speak.{word}"))
    word = ""
    if kind in ("prefix", "suffix"):
        word = mark(v)
        return Rule(kind, word, phrase(v, f"rules/{kind}", x=word))
    if kind == "json":
        word = v.pick(["answer", "text", "reply", "result", "output", v.invented(2)])
    return Rule(kind, word, phrase(v, f"rules/{kind}", k=word))


def mark(v: Values) -> str:
    """A word to begin or end with: a known one, an invented one, a code."""
    draw = v.rng.random()
    if draw < 0.4:
        options = _MARKS[v.language]
        return v.pick([m for i, m in enumerate(options) if (i % 4 == 3) == (v.split == "test")])
    return v.invented_name() if draw < 0.75 else v.draw("code").text


def undone(v: Values, rule: Rule, language: str | None = None) -> tuple[str, str]:
    """What somebody asks who wants the rule broken, and the word that would betray it ("" for none)."""
    other = mark(v)
    while other == rule.word:
        other = mark(v)
    text = phrase(v, f"rules/{rule.kind}.undo", language, x=rule.word, k=rule.word, y=other)
    return text, other if other in text else ""


def apply(v: Values, rules: Sequence[Rule], answer: Answer) -> str:
    """The answer under the rules, in their order."""
    text = answer.sentences[v.language]
    for rule in rules:
        text = _applied(rule, text, answer, v.language)
    return text


def _applied(rule: Rule, text: str, answer: Answer, language: str) -> str:
    if rule.kind == "speak":
        return answer.sentences[rule.word]
    if rule.kind == "value":
        return answer.value
    if rule.kind in ("upper", "lower"):
        return cased(text, rule.kind, language)
    if rule.kind == "bracket":
        return f"[{text}]"
    if rule.kind == "json":
        return compact_json({rule.word: text})
    return f"{rule.word} {text}" if rule.kind == "prefix" else f"{text} {rule.word}"


def cased(text: str, kind: str, language: str) -> str:
    """Upper or lower case; Chinese has none and ends with an exclamation mark or without a stop instead."""
    if language == "zh":
        bare = text.rstrip("。！")
        return bare + "！" if kind == "upper" else bare
    return text.upper() if kind == "upper" else text.lower()


def checks(v: Values, rules: Sequence[Rule], answer: Answer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Phrases that must stand in the answer, and the checks of its form.

    What acts on the whole text is checked on the text; what a later rule wraps is checked as a phrase.
    """
    text = apply(v, [rule for rule in rules if rule.kind in ("speak", "value")], answer)
    spoken = text if any(rule.kind == "speak" for rule in rules) else answer.value
    for rule in rules:
        if rule.kind in ("upper", "lower") and v.language != "zh":
            spoken = spoken.upper() if rule.kind == "upper" else spoken.lower()
    wrapped = any(rule.kind == "json" for rule in rules)
    found: list[str] = []
    for rule in rules:
        if rule.kind == "json":
            found.append(f"json:{rule.word}")
        elif rule.kind in ("prefix", "suffix"):
            found.append(("starts:" if rule.kind == "prefix" else "ends:") + rule.word)
    outer = {rule.kind for rule in rules} & {"prefix", "suffix"}
    kinds = {rule.kind for rule in rules}
    if "bracket" in kinds:
        found += [] if "prefix" in outer else ["starts:["]
        found += [] if "suffix" in outer else ["ends:]"]
    if not outer and "bracket" not in kinds and "value" in kinds:
        found.append(f"only:{spoken}")
    if v.language == "zh" and "upper" in kinds and not outer and "bracket" not in kinds:
        found.append("ends:！")
    if v.language != "zh" and kinds & {"upper", "lower"} and not outer and not wrapped:
        found.append("upper" if "upper" in kinds else "lower")
    return (spoken,), tuple(found)
