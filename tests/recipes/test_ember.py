"""ember's recipe in seconds, on the processor: from generators to a measured folder, without public data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.ember import SMOKE, make
from smelt.checkpoint import open_checkpoint
from smelt.train.lineage import broken_at
from smelt.train.recipe import Workshop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(SMOKE, Workshop(out=tmp_path_factory.mktemp("ember"), on_report=lambda report: None))


def test_the_folder_is_whole_and_of_known_descent(folder: Path) -> None:
    assert open_checkpoint(folder).config.family == "gemma3_text"
    chain = json.loads((folder / "lineage.json").read_text())["chain"]
    assert broken_at(chain) is None
    trained = next(entry for entry in chain if entry["step"] == "train")
    assert trained["tokens"] >= SMOKE.total_tokens * 0.9
    stages = [json.loads(line)["stage"] for line in (folder.parent / "run/metrics.jsonl").read_text().splitlines()]
    assert stages[-1] == "final"


def test_the_card_measures_beside_spark_and_random_weights(folder: Path) -> None:
    scores = json.loads((folder / "card.json").read_text())["scores"]
    assert {"ember", "spark", "random_weights_same_grammar"} <= set(scores)
    assert scores["ember"]["tool_known"]["all"]["exact"]["n"] == 3
    # An untrained smoke model is worse than the shipped one: the rows were not mixed up.
    assert (
        scores["spark"]["tool_known"]["all"]["exact"]["value"] >= scores["ember"]["tool_known"]["all"]["exact"]["value"]
    )
