"""XQuAD (CC BY-SA 4.0): questions on paragraphs, professionally translated; the answer is a span of the paragraph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.evals.cases import Case
from smelt.evals.passages import Passage

LANGUAGES = ("en", "de", "zh")
_ASK = {
    "en": "Answer in as few words as possible, taken from the text.",
    "de": "Antworte mit so wenigen Wörtern wie möglich, dem Text entnommen.",
    "zh": "请用文中的词语作答，尽量简短。",
}


def cases(folder: Path, params: SamplingParams) -> list[Case]:
    """`xquad.{en,de,zh}.json`. Questions on one paragraph, in whatever language, move together."""
    found = []
    for language in LANGUAGES:
        for index, paragraph in enumerate(_paragraphs(folder, language)):
            for question in paragraph["qas"]:
                text = f"{paragraph['context']}\n\n{question['question']}"
                request = ChatRequest(
                    messages=(Message.of("system", _ASK[language]), Message.of("user", text)), params=params
                )
                answers = tuple(dict.fromkeys(answer["text"] for answer in question["answers"]))
                found.append(
                    Case(
                        suite="xquad",
                        language=language,
                        grader="span",
                        request=request,
                        phrases=answers,
                        group=f"paragraph {index}",
                    )
                )
    return found


def passages(folder: Path) -> list[Passage]:
    """The paragraphs as running text, the same content in every language: one suite a language."""
    return [
        Passage(suite=f"bpb_{language}", language=language, text=paragraph["context"])
        for language in LANGUAGES
        for paragraph in _paragraphs(folder, language)
    ]


def _paragraphs(folder: Path, language: str) -> Iterator[dict[str, Any]]:
    for article in json.loads((folder / f"xquad.{language}.json").read_text("utf-8"))["data"]:
        yield from article["paragraphs"]
