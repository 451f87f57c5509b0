"""A model made small by the chain, as a recipe: what `smelt shrink` does, with every setting by name.

    smelt train recipes/shrink.py --out build/small --set model=spark --set to=4MB --set material.train_on=mine.txt

The result is `<out>/model`; beside it stand report.html and the stages' artifacts. Called again it goes on.
"""

from __future__ import annotations

from pathlib import Path

from smelt.compress.chain.material import MaterialSettings
from smelt.compress.chain.measure import MeasureSettings
from smelt.compress.chain.run import Watch
from smelt.compress.chain.speed import SpeedSettings
from smelt.compress.shrink import ShrinkSettings, ShrinkWatch, shrink
from smelt.core.errors import TrainingError
from smelt.train.recipe import Recipe, Workshop


def make(settings: ShrinkSettings, shop: Workshop) -> Path:
    """The published folder. Raises TrainingError where a gate failed; the report is written then too."""
    watch = ShrinkWatch(chain=Watch(say=shop.say, stopping=shop.stopping))
    made = shrink(settings, shop.out, watch)
    if made.folder is None:
        failed = ", ".join(verdict.gate for verdict in made.outcome.verdicts if not verdict.passed)
        raise TrainingError(f"{failed} failed, so nothing was published; report.html tells why")
    return made.folder


recipe = Recipe(
    settings=ShrinkSettings(model="spark"),
    smoke=ShrinkSettings(
        model="spark",
        stages=("distil", "w8"),
        changes=("distil.steps=2",),
        material=MaterialSettings(row_len=32, rows=2, train_tokens=256, held_out_rows=2, calibration=4),
        measuring=MeasureSettings(speed=SpeedSettings(rounds=0)),
    ),
    make=make,
)
