"""A training run in the store: it goes on as the same run, and no failing store stops it."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from smelt.cli import runs as module
from smelt.cli.runs import Recorder, listed, located, named, recorded, stored_runs
from smelt.core.errors import InvalidRequestError, TrainingStoppedError
from smelt.store.database import Database
from smelt.store.location import Location
from smelt.store.runs import TrainingRuns
from smelt.train.report import Report


def report(step: int, loss: float = 1.0) -> Report:
    return Report(
        step=step, total_steps=10, stage="main", loss=loss, gradient_norm=0.1, scale=1.0, num_tokens=step * 100,
        tokens_per_s=10.0, elapsed_s=step * 1.0, left_s=1.0, logs={"kl": 0.5},
    )  # fmt: skip


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return Location(path=tmp_path / "store.db")


def _record(location: Location, folder: Path, steps: list[int], failure: BaseException | None = None) -> None:
    with recorded(str(location), folder, "tiny.py", {"data": Path("d")}) as recorder:
        assert recorder is not None
        for step in steps:
            recorder.show(report(step))
        if failure is not None:
            raise failure


def _steps(location: Location) -> list[list[int]]:
    with closing(Database.open(location)) as database:
        runs = TrainingRuns(database)
        return [[point.step for point in runs.points(run.id)] for run in runs.all()]


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (None, "finished"),
        (TrainingStoppedError("x"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (ValueError(), "failed"),
    ],
)
def test_how_it_ended_is_kept(location: Location, tmp_path: Path, failure: BaseException | None, state: str) -> None:
    if failure is None:
        _record(location, tmp_path / "out", [1, 2])
    else:
        with pytest.raises(type(failure)):
            _record(location, tmp_path / "out", [1, 2], failure)
    (run,) = stored_runs(location)
    assert (run["state"], run["step"], run["loss"], run["num_tokens"]) == (state, 2, 1.0, 200)
    assert run["settings"] == {"data": "d"} and run["folder"] == str(tmp_path / "out")


def test_called_again_it_is_the_same_run(location: Location, tmp_path: Path) -> None:
    _record(location, tmp_path / "out", [1, 2, 3, 4])
    _record(location, tmp_path / "out", [3, 4, 5])
    _record(location, tmp_path / "out", [])
    assert _steps(location) == [[1, 2, 3, 4, 5]]
    _record(location, tmp_path / "other", [1])
    assert sorted(_steps(location)) == [[1], [1, 2, 3, 4, 5]]
    assert named(tmp_path / "out") != named(tmp_path / "other")


def test_points_come_while_it_runs(location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.01)
    with recorded(str(location), tmp_path / "out", "tiny.py", {}) as recorder:
        assert recorder is not None
        recorder.show(report(1))
        deadline = time.monotonic() + 30
        while not (found := stored_runs(location)) or found[0]["step"] != 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert found[0]["state"] == "running"


def test_the_store_is_open_before_training_begins(location: Location, tmp_path: Path) -> None:
    """No import is under way when a recipe forks the processes that prepare its data."""
    with recorded(str(location), tmp_path / "out", "tiny.py", {}):
        assert [run["state"] for run in stored_runs(location)] == ["running"]


def test_a_store_that_cannot_be_opened_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "ALIVE_EVERY_S", 0.01)
    (tmp_path / "file").write_text("")
    _record(Location(path=tmp_path / "file" / "store.db"), tmp_path / "out", [1, 2, 3])
    told = capfd.readouterr().err
    assert told.count("training goes on") == 1 and "cannot be made" in told


def test_what_a_failing_store_did_not_take_comes_later(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.01)
    monkeypatch.setattr(module, "ALIVE_EVERY_S", 0.01)
    add, failures = TrainingRuns.add, iter([True])

    def failing(self: TrainingRuns, *arguments: Any) -> None:
        if arguments[1] and next(failures, False):
            raise sqlite3.OperationalError("disk on fire")
        add(self, *arguments)

    monkeypatch.setattr(TrainingRuns, "add", failing)
    with recorded(str(location), tmp_path / "out", "tiny.py", {}) as recorder:
        assert recorder is not None
        for step in (1, 2, 3):
            recorder.show(report(step))
            time.sleep(0.02)
    assert _steps(location) == [[1, 2, 3]]
    assert capfd.readouterr().err.count("disk on fire") == 1 and next(failures, None) is None


def test_showing_a_point_waits_for_nothing(location: Location, tmp_path: Path) -> None:
    """Another program holds the store for writing: the training thread notices nothing of it."""
    with closing(Database.open(location)) as database, database.writing():
        recorder = Recorder(location, _run(tmp_path))
        began = time.perf_counter()
        for step in range(1000):
            recorder.show(report(step))
        assert time.perf_counter() - began < 1.0
    recorder.close("finished")
    assert len(_steps(location)[0]) == 1000


def _run(tmp_path: Path) -> Any:
    from tests.store.test_runs import training_run

    return training_run(named(tmp_path / "out"), time.time_ns())


def test_a_run_that_was_killed_is_told_from_one_that_works(location: Location, tmp_path: Path) -> None:
    with closing(Database.open(location)) as database:
        runs = TrainingRuns(database)
        runs.begin(_run(tmp_path))
        runs.begin(dataclasses.replace(_run(tmp_path), id="killed", created_ns=1, heard_ns=1))
    assert [run["state"] for run in stored_runs(location)] == ["running", "lost"]


def test_the_list_has_a_line_for_each(location: Location, tmp_path: Path) -> None:
    _record(location, tmp_path / "out", [1, 2])
    _record(location, tmp_path / "none_yet", [])
    head, *lines = listed(stored_runs(location)).splitlines()
    assert head.split() == ["begun", "recipe", "state", "step", "loss", "tokens", "minutes", "folder"]
    assert [line.split()[-1] for line in lines] == [str(tmp_path / "none_yet"), str(tmp_path / "out")]
    assert "2/10" in lines[1] and "1.0000" in lines[1]
    json.dumps(stored_runs(location))


def test_no_store_no_trace(tmp_path: Path) -> None:
    with recorded("none", tmp_path / "out", "tiny.py", {}) as recorder:
        assert recorder is None
    assert stored_runs(located("none")) == [] and stored_runs(Location(path=tmp_path / "never")) == []
    assert not any(tmp_path.iterdir())
    assert "no training runs" in listed([])


def test_a_place_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="--store: no store at mysql"):
        located("mysql://there")
