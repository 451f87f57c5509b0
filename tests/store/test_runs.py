"""Training runs against a twin: a dictionary of steps, filled point by point."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from smelt.store.database import Database
from smelt.store.location import Location
from smelt.store.runs import Point, TrainingRun, TrainingRuns

STEPS = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5)


def point(step: int, loss: float = 1.0) -> Point:
    return Point(
        step=step, total_steps=10, stage="main", loss=loss, num_tokens=step * 2**33, elapsed_s=0.5,
        rest={"scale": 1.0, "logs": {"kl": 0.25}},
    )  # fmt: skip


def training_run(run_id: str, created_ns: int = 1, **fields: Any) -> TrainingRun:
    told: dict[str, Any] = {
        "id": run_id,
        "created_ns": created_ns,
        "heard_ns": created_ns,
        "recipe": "spark.py",
        "folder": "out",
        "settings": {"steps": 3},
        "state": "running",
    }
    return TrainingRun(**(told | fields))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One store for all examples: making a file for each would be most of the time."""
    with closing(Database.open(Location(path=tmp_path_factory.mktemp("shared") / "store.db"))) as database:
        yield database


@settings(max_examples=40, deadline=None)
@given(batches=STEPS)
def test_a_step_taken_again_replaces_itself_and_what_came_after(shared: Database, batches: list[list[int]]) -> None:
    with shared.writing() as connection:
        connection.execute(text("DELETE FROM training_runs"))
    runs = TrainingRuns(shared)
    for name in ("one", "other"):
        runs.begin(training_run(name))
    runs.add("other", [point(5)])
    twin: dict[int, Point] = {}
    for number, batch in enumerate(batches):
        points = [point(step, loss=number + i / 100) for i, step in enumerate(batch)]
        runs.add("one", points)
        for each in points:
            twin = {step: kept for step, kept in twin.items() if step < each.step} | {each.step: each}
    assert runs.points("one") == [twin[step] for step in sorted(twin)]
    assert runs.points("other") == [point(5)]
    newest = {run.id: run.last for run in runs.all()}
    assert newest == {"one": twin[max(twin)] if twin else None, "other": point(5)}


def test_begun_again_it_is_the_same_run(database: Database) -> None:
    runs = TrainingRuns(database)
    runs.begin(training_run("a", 1))
    runs.begin(training_run("b", 2, state="finished"))
    runs.add("a", [point(1)])
    runs.tell("a", "stopped")
    stopped = runs.all()[1]
    assert (stopped.state, stopped.heard_ns > 1) == ("stopped", True)
    again = training_run("a", 9, folder="moved", settings={"steps": 4})
    runs.begin(again)
    assert runs.all() == [
        training_run("b", 2, state="finished"),
        dataclasses.replace(again, created_ns=1, last=point(1)),
    ]


def test_nothing_of_an_unknown_run(database: Database) -> None:
    runs = TrainingRuns(database)
    assert runs.all() == [] and runs.points("x") == []
    runs.tell("x", "failed")
    assert runs.all() == []
