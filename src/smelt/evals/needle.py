"""A needle in a haystack: one sentence with a number, somewhere in a long text, asked for at the end.

The idea is the common one (also RULER's first task, arXiv 2404.06654); sentences and places are ours. Lengths are in
characters, so that every model gets the same texts; a text beyond a model's context counts as not asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.evals.cases import Case

if TYPE_CHECKING:
    from smelt.evals.suite import Row

LENGTHS = (1_000, 4_000, 16_000, 64_000, 256_000)
DEPTHS = (0, 25, 50, 75, 100)
_NEEDLE = {
    "en": ("The access number for {place} is {number}.", "What is the access number for {place}?"),
    "de": ("Die Zugangsnummer für {place} lautet {number}.", "Wie lautet die Zugangsnummer für {place}?"),
    "zh": ("{place}的通行号码是{number}。", "{place}的通行号码是多少？"),
}
_PLACES = {
    "en": ("the north tower", "the boat house", "the old archive", "the glass pavilion", "the water works"),
    "de": ("den Nordturm", "das Bootshaus", "das alte Archiv", "den Glaspavillon", "das Wasserwerk"),
    "zh": ("北塔", "船屋", "旧档案馆", "玻璃亭", "水厂"),
}


def cases(
    paragraphs: Sequence[str],
    language: str,
    params: SamplingParams,
    *,
    lengths: Sequence[int] = LENGTHS,
    per_cell: int = 3,
) -> list[Case]:
    """`per_cell` questions for every length (characters) and depth (per cent of the text before the needle).

    The hay is `paragraphs` in a random order, again and again until it is long enough. One suite a length.
    """
    found = []
    for length in lengths:
        for depth in DEPTHS:
            for i in range(per_cell):
                rng = random.Random(f"needle/{language}/{length}/{depth}/{i}")
                found.append(_case(paragraphs, language, params, length, depth, rng))
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown: found of asked for every length and depth, languages together; "-" where no text fitted."""
    cells: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        if isinstance(row.question, Case) and row.question.detail.startswith("depth") and row.grade is not None:
            cells.setdefault((row.question.suite, row.question.detail), []).append(bool(row.grade.exact))
    suites = [name for name in map(suite_of, LENGTHS) if any(suite == name for suite, _ in cells)]
    if not suites:
        return ""
    lines = ["| characters | " + " | ".join(f"depth {depth} %" for depth in DEPTHS) + " |", "|---" * 6 + "|"]
    for suite in suites:
        found = [cells.get((suite, f"depth {depth}"), []) for depth in DEPTHS]
        shown = " | ".join(f"{sum(cell)} of {len(cell)}" if cell else "-" for cell in found)
        lines.append(f"| {suite.removeprefix('needle_')} | {shown} |")
    return "\n".join(lines)


def suite_of(length: int) -> str:
    """The name of the suite with texts of that many characters."""
    return f"needle_{length // 1000}k"


def _case(
    paragraphs: Sequence[str], language: str, params: SamplingParams, length: int, depth: int, rng: random.Random
) -> Case:
    place, number = rng.choice(_PLACES[language]), str(rng.randint(100_000, 999_999))
    statement, question = (text.format(place=place, number=number) for text in _NEEDLE[language])
    hay, room = [], length
    while room > 0:
        for paragraph in rng.sample(paragraphs, len(paragraphs)):
            if room > 0:
                hay.append(paragraph[:room])
                room -= len(paragraph)
    hay.insert(_place(hay, depth), statement)
    text = "\n\n".join([*hay, question])
    request = ChatRequest(messages=(Message.of("user", text),), params=params)
    return Case(
        suite=suite_of(length),
        language=language,
        grader="phrases",
        request=request,
        phrases=(number,),
        detail=f"depth {depth}",
    )


def _place(hay: Sequence[str], depth: int) -> int:
    """Before which paragraph the needle goes, so that `depth` per cent of the characters stand before it."""
    wanted, before = sum(map(len, hay)) * depth / 100, 0
    for index, paragraph in enumerate(hay):
        if before + len(paragraph) / 2 > wanted:
            return index
        before += len(paragraph)
    return len(hay)
