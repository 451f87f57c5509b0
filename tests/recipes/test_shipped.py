"""The shipped spark: whole, small, of known descent, and as good as its card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smelt.checkpoint import open_checkpoint
from smelt.cli.suites import GRADERS, as_case
from smelt.data.tasks.suites import held_out
from smelt.evals.suite import run
from smelt.generate.llm import LLM
from smelt.train.lineage import broken_at

FOLDER = Path(__file__).resolve().parents[2] / "src/smelt/shipped/spark"


def test_small_and_house_shaped() -> None:
    found = open_checkpoint(FOLDER)
    assert found.config.family == "gemma3_text"
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16_000_000


def test_descent_is_unbroken_and_data_is_named() -> None:
    chain = json.loads((FOLDER / "lineage.json").read_text())["chain"]
    assert broken_at(chain) is None
    card = json.loads((FOLDER / "card.json").read_text())
    assert {row["name"] for row in card["data"]} >= {"snips", "sgd", "sentences"}
    assert all(row["licence"] for row in card["data"])


@pytest.mark.parametrize("suite", ["tool_result", "extract_free", "tool_known"])
def test_fresh_questions_score_as_the_card_says(suite: str) -> None:
    """Other questions than the card's, from the same held-out distribution: within the spread of 30 answers."""
    card = json.loads((FOLDER / "card.json").read_text())["scores"]
    claimed = card["spark"][suite]["all"]["exact"]["value"]
    llm = LLM.load(FOLDER)
    try:
        examples = [example for language in ("en", "de", "zh") for example in held_out(suite, language, 10, seed=1)]
        rows = run(llm, [as_case(example, GRADERS[suite], suite) for example in examples])
    finally:
        llm.close()
    share = sum(row.grade is not None and row.grade.exact for row in rows) / len(rows)
    assert abs(share - claimed) < 3.5 * (0.25 / len(rows)) ** 0.5
    assert share > card["random_weights_same_grammar"][suite]["all"]["exact"]["value"]
