"""Word problems with one number as the answer: GSM8K (MIT, English) and MGSM (CC BY 4.0, the same in many languages).

Zero-shot, the steps asked for in the problem's language, the last number of the answer counts.
"""

from __future__ import annotations

import json
from pathlib import Path

from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.evals.cases import Case

_ASK = {
    "en": "Solve the problem step by step. End with a line that holds only the number that is the answer.",
    "de": "Löse die Aufgabe Schritt für Schritt. Die letzte Zeile soll nur die Zahl enthalten, die die Antwort ist.",
    "zh": "请一步一步解题。最后一行只写作为答案的数字。",
}


def gsm8k_cases(file: Path, params: SamplingParams) -> list[Case]:
    """`test.jsonl`: the answer stands after "####"."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [_case("gsm8k", "en", row["question"], row["answer"].split("####")[-1], params, "") for row in rows]


def mgsm_cases(folder: Path, params: SamplingParams) -> list[Case]:
    """`mgsm_{en,de,zh}.tsv`: problem, tab, number. The same line in two languages is the same problem."""
    found = []
    for language in _ASK:
        for i, line in enumerate((folder / f"mgsm_{language}.tsv").read_text("utf-8").splitlines()):
            problem, answer = line.rsplit("\t", 1)
            found.append(_case("mgsm", language, problem, answer, params, f"problem {i}"))
    return found


def _case(suite: str, language: str, problem: str, answer: str, params: SamplingParams, group: str) -> Case:
    request = ChatRequest(messages=(Message.of("user", f"{_ASK[language]}\n\n{problem}"),), params=params)
    return Case(
        suite=suite, language=language, grader="number", request=request, phrases=(answer.strip(),), group=group
    )
