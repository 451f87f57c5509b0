"""The recipes of alignment from settings to a folder: fine-tuning, longer context. Hardening is in the slow tests."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from smelt.checkpoint import open_checkpoint
from smelt.core.errors import InvalidRequestError
from smelt.train.recipe import Workshop, load_recipe, with_settings

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def quiet(out: Path, told: list[str] | None = None) -> Workshop:
    return Workshop(out=out, on_report=lambda _: None, say=(told if told is not None else []).append)


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_fine_tuning(method: str, tiny_folder: Path, tmp_path: Path) -> None:
    recipe, told = load_recipe(RECIPES / "finetune.py"), list[str]()
    settings = with_settings(recipe.smoke, [f"base={tiny_folder}", f"tuning.method={method}", "tuning.name=mine"])
    folder = recipe.make(settings, quiet(tmp_path, told))
    card = json.loads((folder / "card.json").read_text())
    assert card["name"] == "mine"
    assert card["fine_tuning"]["method"] == method
    assert card["validation"]["after"]["loss"] < card["validation"]["before"]["loss"]
    assert any(text.startswith("validation before: loss") for text in told)


def test_fine_tuning_needs_a_file(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "finetune.py")
    with pytest.raises(InvalidRequestError, match="training is missing"):
        recipe.make(recipe.settings, quiet(tmp_path))


def test_long_context(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "long_context.py")
    settings = dataclasses.replace(recipe.smoke, base=str(tiny_folder), needle_chars=(1_000,))
    folder = recipe.make(settings, quiet(tmp_path))
    opened = open_checkpoint(folder)
    assert opened.config.context_len == 8192
    assert opened.config.ropes[0].base == 8e6
    assert opened.card is not None
    assert opened.card["trained_len"] == 512
    assert opened.card["needle_by_depth"]["num_asked"] == 5
    assert opened.card["needle_by_depth"]["table"].count("of 1") == 5


@pytest.mark.slow
def test_hardening_of_the_shipped_model(served_folder: Path, tmp_path: Path) -> None:
    if served_folder.name != "spark":
        pytest.skip("needs the shipped model: random weights answer nothing")
    recipe = load_recipe(RECIPES / "harden.py")
    folder = recipe.make(recipe.smoke, quiet(tmp_path))
    card = json.loads((folder / "card.json").read_text())
    assert card["validation"]["after"]["logs"]["margin"] > 0
