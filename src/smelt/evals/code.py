"""Programs as text to predict: HumanEval's (MIT) and MBPP's (CC BY 4.0) reference solutions. Nothing is run."""

from __future__ import annotations

import json
from pathlib import Path

from smelt.evals.passages import Passage


def passages(humaneval: Path | None, mbpp: Path | None) -> list[Passage]:
    """HumanEval's signature, docstring and solution; MBPP's task as a comment, then its code."""
    texts = [row["prompt"] + row["canonical_solution"] for row in _rows(humaneval)]
    texts += [f"# {row['text']}\n{row['code']}\n".replace("\r\n", "\n") for row in _rows(mbpp)]
    return [Passage(suite="bpb_code", language="py", text=text) for text in texts]


def _rows(file: Path | None) -> list[dict[str, str]]:
    return [] if file is None else [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
