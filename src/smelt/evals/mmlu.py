"""MMLU (Hendrycks et al. 2021, MIT): four options, by the log-probability of the letter after "Answer:", zero-shot.

Only comparable with likelihood forms of MMLU, never with generated chains of thought.
"""

from __future__ import annotations

import csv
from pathlib import Path

from smelt.evals.cases import Choice

_LETTERS = "ABCD"


def questions(folder: Path, suite: str = "mmlu_dev") -> list[Choice]:
    """Every subject's file in `folder` (question, choice0..3, answer as 0..3), the subject being its name."""
    found = []
    for file in sorted(folder.glob("*.csv")):
        subject = file.stem.removesuffix("_dev").removesuffix("_test").replace("_", " ")
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                options = "".join(f"{letter}. {row[f'choice{i}']}\n" for i, letter in enumerate(_LETTERS))
                context = f"A multiple-choice question about {subject}.\n\n{row['question']}\n{options}Answer:"
                found.append(
                    Choice(
                        suite=suite,
                        language="en",
                        context=context,
                        options=tuple(f" {letter}" for letter in _LETTERS),
                        right=int(row["answer"]),
                    )
                )
    return found
