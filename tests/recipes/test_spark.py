"""spark's recipe in seconds: everything from generators to a measured folder, without public data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from recipes.spark import make
from recipes.spark_config import SMOKE
from smelt.checkpoint import open_checkpoint
from smelt.train.lineage import broken_at
from smelt.train.recipe import Workshop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = dataclasses.replace(SMOKE, minutes=0.03)
    return make(config, Workshop(out=tmp_path_factory.mktemp("spark")))


def test_the_folder_is_whole_and_small(folder: Path) -> None:
    found = open_checkpoint(folder)
    assert found.config.family == "gemma3_text"
    assert found.stored_dtypes == {"BF16"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16_000_000


def test_the_card_has_every_suite_and_the_control(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    assert card["name"] == "spark"
    for scored in ("spark", "random_weights_same_grammar"):
        suites = card["scores"][scored]
        assert {"tool_known", "tool_unseen", "no_tool", "extract", "service"} <= set(suites)
        exact = suites["tool_known"]["all"]["exact"]
        assert exact["n"] == 3
        assert exact["interval95"][0] <= exact["value"] <= exact["interval95"][1]


def test_the_lineage_is_unbroken(folder: Path) -> None:
    chain = json.loads((folder / "lineage.json").read_text())["chain"]
    assert [entry["step"] for entry in chain] == ["data", "tokenizer", "train", "weights"]
    assert broken_at(chain) is None


def test_called_again_it_goes_on_from_the_checkpoint(folder: Path) -> None:
    out = folder.parent
    before = json.loads((folder / "lineage.json").read_text())["chain"][2]["steps"]
    again = make(dataclasses.replace(SMOKE, minutes=0.03, export_only=True), Workshop(out=out))
    assert json.loads((again / "lineage.json").read_text())["chain"][2]["steps"] == before
