"""`smelt train` as its users meet it: lines, JSON, going on, being stopped, and the picture of a terminal."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from smelt.cli.train import TrainOptions, picture, plot, stops, train_command
from smelt.core.errors import InvalidRequestError
from smelt.train.report import Report

RECIPE = """
import os, signal
from dataclasses import dataclass
from tests.train.runs import tiny_run
from smelt.train.recipe import Recipe

@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 5
    stop_at: int = 0

def make(settings, shop):
    shop.say(f"{settings.steps} steps to go, data in {shop.data}")

    def show(report):
        shop.on_report(report)
        if report.step == settings.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    tiny_run(shop.out / "run", steps=settings.steps, on_report=show, stopping=shop.stopping).train()
    return shop.out / "model"

recipe = Recipe(settings=Settings(), smoke=Settings(steps=2), make=make)
"""


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of the one who runs the tests is none of their business."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data_home"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / f"recipe_{tmp_path.name}.py"
    path.write_text(RECIPE)
    return path


def test_lines_then_the_folder(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_command(TrainOptions(recipe=recipe, out=tmp_path / "out", data=Path("d"), changes=["steps=3"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 steps to go, data in d"
    assert [line.split()[1] for line in lines[1:4]] == ["1", "2", "3"]
    assert "0.0 min left" in lines[3]
    assert lines[-1] == str(tmp_path / "out" / "model")
    asked = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert asked == {"recipe": recipe.name, "settings": {"steps": 3, "stop_at": 0}}
    assert (tmp_path / "out" / "run" / "curves.svg").is_file()


def test_json_alone_on_standard_output(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_command(TrainOptions(recipe=recipe, out=tmp_path / "out", smoke=True, as_json=True))
    found = capsys.readouterr()
    told = json.loads(found.out)
    assert told["made"].endswith("model")
    assert told["last_report"]["step"] == told["last_report"]["total_steps"] == 2
    assert "2 steps to go" in found.err


def test_stopped_it_says_so_and_called_again_goes_on(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"recipe": recipe, "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as stopped:
        train_command(TrainOptions(**options, changes=["stop_at=2"]))
    assert stopped.value.code == 130
    first = capsys.readouterr()
    assert "stopping after this step" in first.err
    assert "stopped after step 3" in first.err
    train_command(TrainOptions(**options))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["4", "5"]
    train_command(TrainOptions(runs=True, as_json=True))
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["recipe"], run["state"], run["step"]) == (recipe.name, "finished", 5)


def test_a_recipe_and_a_folder_or_the_runs(recipe: Path) -> None:
    with pytest.raises(InvalidRequestError, match="sought a recipe and --out"):
        train_command(TrainOptions(recipe=recipe))


def test_signals_to_forked_workers_are_not_taken_for_the_users(capfd: pytest.CaptureFixture[str]) -> None:
    """A worker that prepared data printed "stopping" and lived on when it was told to end."""
    stopping = threading.Event()
    with stops(stopping):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        worker.start()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        worker.join(0.2)
        assert worker.is_alive(), "Ctrl-C leaves it at work for the step under way"
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 128 + signal.SIGTERM
    assert not stopping.is_set()
    assert "stopping" not in capfd.readouterr().err


def test_a_wrong_setting_makes_no_folder(tmp_path: Path, recipe: Path) -> None:
    with pytest.raises(InvalidRequestError, match="known: steps, stop_at"):
        train_command(TrainOptions(recipe=recipe, out=tmp_path / "out", changes=["step=3"]))
    assert not (tmp_path / "out").exists()


def test_a_plot_is_as_high_as_its_values() -> None:
    assert plot([0.0, 1.0], width=2, height=2) == [" █", "▁█"]
    assert plot([3.0], width=4, height=1) == ["▁   "]
    many = plot([float(i) for i in range(640)], width=64, height=8)
    heights = [sum(row[column] != " " for row in many) for column in range(64)]
    assert heights == sorted(heights)
    assert (heights[0], heights[-1]) == (1, 8)


def test_the_picture_says_how_far_it_is() -> None:
    report = Report(
        step=25, total_steps=100, stage="main", loss=1.5, gradient_norm=0.1, scale=1.0, num_tokens=5_000_000,
        tokens_per_s=1234.0, elapsed_s=60.0, left_s=180.0, logs={"kl": 0.25},
    )  # fmt: skip
    text = picture(report, [4.0, 2.0, 1.5])
    for words in ("25%", "4.000", "1.500", "kl 0.25", "5.00M tokens", "1,234/s", "3.0 min left"):
        assert words in text
