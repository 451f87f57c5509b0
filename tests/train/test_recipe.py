"""Recipes as files: settings by name and type, nothing unknown taken; curves of what came of it."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import pytest

from smelt.core.errors import InvalidRequestError
from smelt.train import report
from smelt.train.curves import svg, write_curves
from smelt.train.recipe import known_settings, load_recipe, with_settings
from smelt.train.report import Report


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 10
    name: str = "x"
    fast: bool = False
    kind: Literal["a", "b"] = "a"
    limit: float | None = None
    layers: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps below 0")


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("steps=1_000", "steps", 1000),
        ("name=a = b", "name", "a = b"),
        ("fast=True", "fast", True),
        ("kind=b", "kind", "b"),
        ("limit=2", "limit", 2.0),
        ("limit=none", "limit", None),
        ("layers=3, 4,5", "layers", (3, 4, 5)),
        ("inner.rate=1e-3", "inner.rate", 1e-3),
        ("inner.betas=0.8,0.9", "inner.betas", (0.8, 0.9)),
    ],
)
def test_a_setting_is_changed_and_no_other(change: str, key: str, value: Any) -> None:
    found = known_settings(with_settings(Settings(), [change]))
    assert found == known_settings(Settings()) | {key: value}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stesp=3", r"stesp: unknown \(did you mean steps\?\); known: steps, name, fast"),
        ("inner.rat=3", r"inner.rat: unknown \(did you mean rate\?\); known: rate, betas"),
        ("inner=3", r"one of its keys: rate, betas"),
        ("steps.more=3", "a plain key"),
        ("steps=many", "steps: sought int, found 'many'"),
        ("steps=1.5", "sought int"),
        ("limit=soon", "sought float"),
        ("fast=1", "true or false"),
        ("kind=c", "one of a, b"),
        ("steps", "key=value"),
        ("steps=-1", "steps below 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        with_settings(Settings(), [change])


PLAIN = """
from dataclasses import dataclass
from smelt.train.recipe import Recipe

@dataclass(frozen=True)
class Own:
    width: int = 8

recipe = Recipe(settings=Own(), smoke=Own(width=2), make=lambda settings, shop: shop.out / str(settings.width))
"""


def test_a_recipe_is_any_python_file(tmp_path: Path) -> None:
    (tmp_path / "plain_recipe.py").write_text(PLAIN)
    found = load_recipe(tmp_path / "plain_recipe.py")
    assert dataclasses.asdict(found.settings) == {"width": 8}
    assert found.smoke.width == 2


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty_recipe.py").write_text("recipe = 3")
    (tmp_path / "broken_recipe.py").write_text("import no_such_module_anywhere")
    for name, words in (
        ("empty_recipe.py", "of type Recipe, found int"),
        ("broken_recipe.py", "does not load: No module named 'no_such_module_anywhere'"),
        ("none_recipe.py", "beside it lie broken_recipe.py, empty_recipe.py"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            load_recipe(tmp_path / name)


def test_the_shipped_recipe_loads_as_part_of_its_package() -> None:
    from recipes.spark_config import SparkConfig

    found = load_recipe(Path(__file__).resolve().parents[2] / "recipes" / "spark.py")
    assert isinstance(found.settings, SparkConfig)


def reports() -> list[Report]:
    return [
        Report(
            step=step, total_steps=6, stage="one & two" if step < 3 else "three", loss=8.0 / step, gradient_norm=1.0,
            scale=1.0, num_tokens=step * 1000, tokens_per_s=10.0, elapsed_s=step * 1.0, left_s=6.0 - step,
            logs={"kl": 0.5} if step > 3 else {},
        )
        for step in range(1, 7)
    ]  # fmt: skip


def test_curves_hold_every_report(tmp_path: Path) -> None:
    assert write_curves(tmp_path) == []
    for made in reports():
        report.append(tmp_path, made)
    table, picture = write_curves(tmp_path)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [made.loss for made in reports()]
    assert [row["kl"] for row in rows] == ["", "", "", "0.5", "0.5", "0.5"]
    root = ElementTree.fromstring(picture.read_text())
    space = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in root.iter(f"{space}text")]
    assert {"one & two", "three", "loss", "tokens"} <= set(words)
    (line,) = root.iter(f"{space}polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points)), "a falling loss goes down the page"


@pytest.mark.parametrize("losses", [[2.0], [2.0, 2.0], [2.0, float("nan"), 1.0], [0.0, 0.0]])
def test_flat_short_and_broken_curves_are_drawn(losses: list[float]) -> None:
    rows = [dataclasses.asdict(made) | {"loss": loss} for made, loss in zip(reports(), losses, strict=False)]
    ElementTree.fromstring(svg(rows))
