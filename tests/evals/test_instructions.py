"""Each of IFEval's kinds: a text that keeps the instruction, and one that breaks it by little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smelt.core.sampling import SamplingParams
from smelt.evals import ifeval
from smelt.evals.instructions import CHECKS, Instruction, grade_instructions, kept, num_sentences
from smelt.evals.languages import guess_language

KINDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["mom", "art"]}, "My MOM loves art.", "My mom loves music."),
    ("keywords:frequency", {"keyword": "tea", "relation": "at least", "frequency": 2}, "Tea or tea?", "One tea."),
    ("keywords:forbidden_words", {"forbidden_words": ["sleep"]}, "Sleepless nights.", "I sleep."),
    ("keywords:letter_frequency", {"letter": "e", "let_relation": "less than", "let_frequency": 2}, "One.", "Eye."),
    ("language:response_language", {"language": "de"}, "Das ist ein Satz und der ist gut.", "This is the one that is."),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        "Hi. Bye.",
        "A b. C d! E f?",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "one two three", "one two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"first_word": "but", "num_paragraphs": 2, "nth_paragraph": 2},
        'Yes.\n\n"But, no.',
        "But yes.\n\nNo.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a] and b"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\nP.P.S. more", "Bye\nP.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n- c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        "Day 1 a Day 2 b",
        "Day 1 a",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Title>>\ntext", "<Title>\n<<>>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So. "the end."', "The end. Not."),
    ("startend:quotation", {}, ' "All of it." ', '"All" of it.'),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "VERY NICE day",
        "VERY Nice day",
    ),
    ("change_case:english_capital", {}, "THIS IS THE ONE.", "THIS IS The ONE."),
    ("change_case:english_lowercase", {}, "this is the one.", "this is The one."),
    ("punctuation:no_comma", {}, "no comma; none", "one, comma"),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), KINDS, ids=[row[0] for row in KINDS])
def test_kinds(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    assert kept(Instruction(kind, arguments), good)
    assert not kept(Instruction(kind, arguments), bad)
    assert not kept(Instruction(kind, arguments), " ")


def test_every_kind_is_here() -> None:
    assert {row[0] for row in KINDS} == set(CHECKS)


def test_loose_takes_off_opening_ending_and_emphasis() -> None:
    quoted = (Instruction("startend:quotation"),)
    strict = grade_instructions(quoted, '"All of it."')
    assert (strict.exact, strict.loose) == (True, True)
    loose = grade_instructions(quoted, 'Sure, here it is:\n*"All of it."*')
    assert (loose.exact, loose.loose, loose.hits, loose.sought) == (False, True, 0, 1)
    none = grade_instructions(quoted, "All of it.")
    assert (none.exact, none.loose) == (False, False)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Dr. Who met J. R. Smith. They left.", 2),
        ("It costs 3.50 dollars. Fine", 2),
        ("第一句。第二句！", 2),
        ("Heading\n\nA sentence.", 2),
        ("Wait... what?!", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert num_sentences(text) == count


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("It is not the same as it was with you.", "en"),
        ("Es ist nicht das, was ich mit dir für uns wollte.", "de"),
        ("Questo è un esempio di una frase che non è lunga.", "it"),
        ("यह एक वाक्य है और यह हिंदी में है।", "hi"),
        ("हे एक वाक्य आहे आणि ते मराठी आहे.", "mr"),
        ("यो एक वाक्य हो र यो नेपालीमा छ।", "ne"),
        ("این یک جمله است که به فارسی نوشته می شود", "fa"),
        ("یہ ایک جملہ ہے اور یہ اردو میں ہے", "ur"),
        ("هذه جملة من اللغة العربية التي كان في", "ar"),
        ("ಇದು ಒಂದು ವಾಕ್ಯ", "kn"),
        ("이것은 문장입니다", "ko"),
        ("这是一个句子", "zh"),
        ("Това е изречение на български и не е дълго", "bg"),
        ("Hii ni sentensi ya Kiswahili na si ndefu sana", "sw"),
        ("Tämä on lause ja se ei ole pitkä", "fi"),
        ("Đây là một câu và nó không dài cho những người", "vi"),
        ("123 !?", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert guess_language(text) == language


def test_every_real_prompt_can_be_graded(shared_data: Path) -> None:
    """No kind or argument of the real file is unknown; an answer that keeps a prompt's instructions is found to."""
    found = ifeval.cases(shared_data / "eval/ifeval/en_input_data.jsonl", SamplingParams())
    assert len(found) > 300
    for case in found:
        marks = grade_instructions(case.instructions, "My answer is yes. [a] P.S. *b* the end")
        assert marks.sought == len(case.instructions)
