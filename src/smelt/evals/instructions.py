"""Instructions whose keeping a program can check: the 25 kinds of IFEval (Zhou et al. 2023, arXiv 2311.07911).

Our own reading of the published definitions. Where the original leans on a library, ours is simpler and said so:
sentences end at . ! ? or their full-width forms before a space or the end, initials and common titles not
counted; the language of a text is guessed by script and small words (`languages.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smelt.evals.grade import Grade
from smelt.evals.languages import guess_language

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]


@dataclass(frozen=True)
class Instruction:
    """One instruction: its kind (a key of `CHECKS`) and what it is about."""

    kind: str
    arguments: Arguments = field(default_factory=dict)


def grade_instructions(instructions: Sequence[Instruction], text: str) -> Grade:
    """exact: all kept as the text stands; loose: all kept by some variant of it; hits of sought, one by one."""
    hits = sum(kept(one, text) for one in instructions)
    loose = all(any(kept(one, variant) for variant in variants(text)) for one in instructions)
    return Grade(
        exact=hits == len(instructions), loose=loose, hits=hits, predicted=len(instructions), sought=len(instructions)
    )


def kept(instruction: Instruction, text: str) -> bool:
    """Whether a text keeps the instruction; an empty text keeps none."""
    return bool(text.strip()) and CHECKS[instruction.kind](text, instruction.arguments)


def variants(text: str) -> Iterator[str]:
    """The text without its first line, its last, both; each also without asterisks (the paper's loose accuracy)."""
    lines = text.split("\n")
    for part in (lines, lines[1:], lines[:-1], lines[1:-1]):
        joined = "\n".join(part).strip()
        yield joined
        yield joined.replace("*", "")


def _compares(count: int, relation: str, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


def _found(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.IGNORECASE))


def _existence(text: str, a: Arguments) -> bool:
    return all(_found(re.escape(word), text) for word in a["keywords"])


def _frequency(text: str, a: Arguments) -> bool:
    return _compares(_found(re.escape(a["keyword"]), text), a["relation"], a["frequency"])


def _forbidden(text: str, a: Arguments) -> bool:
    return not any(_found(rf"\b{re.escape(word)}\b", text) for word in a["forbidden_words"])


def _letter_frequency(text: str, a: Arguments) -> bool:
    return _compares(text.lower().count(a["letter"].lower()), a["let_relation"], a["let_frequency"])


def _response_language(text: str, a: Arguments) -> bool:
    return guess_language(text) in (a["language"], None)


_TITLES = re.compile(r"\b(?:(?i:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e)|[A-Z])\.")


def num_sentences(text: str) -> int:
    """Sentences by their closing marks; a text that ends without one ends a sentence too."""
    plain = _TITLES.sub(lambda found: found[0][:-1], text.strip())
    closed = re.split(r"(?<=[.!?])[\"'”’)\]*]*\s+|(?<=[。！？])|\n{2,}", plain)
    return sum(any(char.isalnum() for char in piece) for piece in closed)


def _sentences(text: str, a: Arguments) -> bool:
    return _compares(num_sentences(text), a["relation"], a["num_sentences"])


def _words(text: str, a: Arguments) -> bool:
    return _compares(len(re.findall(r"\w+", text)), a["relation"], a["num_words"])


def _parts(text: str, mark: str) -> list[str] | None:
    """What stands between marks, an empty beginning or end left out; None when something is empty in the middle."""
    found = [part.strip() for part in re.split(mark, text)]
    inner = found[1:-1]
    return None if not all(inner) else [part for part in found if part]


def _paragraphs(text: str, a: Arguments) -> bool:
    parts = _parts(text, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == int(a["num_paragraphs"])


def _first_word(text: str, a: Arguments) -> bool:
    paragraphs = text.split("\n\n")
    nth = a["nth_paragraph"]
    if sum(bool(part.strip()) for part in paragraphs) != a["num_paragraphs"] or nth > len(paragraphs):
        return False
    words = paragraphs[nth - 1].split()
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip("'\""))[0].lower() == str(a["first_word"]).lower()


def _placeholders(text: str, a: Arguments) -> bool:
    return _found(r"\[[^\n]*?\]", text) >= int(a["num_placeholders"])


def _postscript(text: str, a: Arguments) -> bool:
    letters = re.findall(r"[a-z]", a["postscript_marker"].lower())
    return re.search(r"\.\s?".join(letters), text.lower()) is not None


def _bullets(text: str, a: Arguments) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*]|-)", text, re.MULTILINE)) == int(a["num_bullets"])


def _constrained(text: str, a: Arguments) -> bool:
    return any(f"My answer is {answer}." in text for answer in ("yes", "no", "maybe"))


def _highlights(text: str, a: Arguments) -> bool:
    marked = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return sum(bool("".join(one).strip()) for one in marked) >= int(a["num_highlights"])


def _sections(text: str, a: Arguments) -> bool:
    return len(re.findall(rf"{re.escape(a['section_spliter'])}\s?\d+", text)) >= int(a["num_sections"])


def _json(text: str, a: Arguments) -> bool:
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, a: Arguments) -> bool:
    return any(found.strip("<> ") for found in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str, a: Arguments) -> bool:
    parts = _parts(text, r"\*{6}")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def _repeat_prompt(text: str, a: Arguments) -> bool:
    return text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower())


def _end_phrase(text: str, a: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower())


def _capital_words(text: str, a: Arguments) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", text))
    return _compares(count, a["capital_relation"], a["capital_frequency"])


def _all_capital(text: str, a: Arguments) -> bool:
    return text.isupper() and guess_language(text) == "en"


def _all_lower(text: str, a: Arguments) -> bool:
    return text.islower() and guess_language(text) == "en"


def _no_comma(text: str, a: Arguments) -> bool:
    return "," not in text


def _quoted(text: str, a: Arguments) -> bool:
    plain = text.strip()
    return len(plain) > 1 and plain[0] == plain[-1] == '"'


CHECKS: Mapping[str, Check] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_phrase,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _all_capital,
    "change_case:english_lowercase": _all_lower,
    "punctuation:no_comma": _no_comma,
}
