"""Training runs and the points of their curves. They belong to the machine's owner and have no tenant: no key's holder
made them, and the server shows none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sqlalchemy import and_, delete, func, insert, select, update

from smelt.store.database import Database
from smelt.store.tables import training_points, training_runs

State = Literal["running", "finished", "stopped", "failed"]
_R, _P = training_runs.c, training_points.c


@dataclass(frozen=True, kw_only=True)
class Point:
    """One line of progress. loss: the mean since the point before; rest: what else was told, as JSON values."""

    step: int
    total_steps: int
    stage: str
    loss: float
    num_tokens: int
    elapsed_s: float
    rest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run. folder: where it is made; settings: what the recipe was told; heard_ns: when it last gave word of itself.

    last: its newest point, None before the first.
    """

    id: str
    created_ns: int
    heard_ns: int
    recipe: str
    folder: str
    settings: Mapping[str, Any]
    state: State
    last: Point | None = None


class TrainingRuns:
    """The training runs of a database. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, run: TrainingRun) -> None:
        """Insert the run or, where its id is known, go on with it: its points stay, the rest is as given now."""
        row = {
            "heard_ns": run.heard_ns,
            "recipe": run.recipe,
            "folder": run.folder,
            "settings": json.dumps(run.settings, default=str),
            "state": run.state,
        }
        with self._database.writing() as connection:
            if not connection.execute(update(training_runs).where(_R.id == run.id).values(row)).rowcount:
                connection.execute(insert(training_runs).values(row | {"id": run.id, "created_ns": run.created_ns}))

    def add(self, run_id: str, points: Sequence[Point]) -> None:
        """Append points, in their order; each replaces all from its step on, as those steps were taken again."""
        kept: list[Point] = []
        for point in points:
            while kept and kept[-1].step >= point.step:
                kept.pop()
            kept.append(point)
        if not kept:
            return
        rows = [asdict(point) | {"run_id": run_id, "rest": json.dumps(point.rest)} for point in kept]
        first = min(point.step for point in points)
        with self._database.writing() as connection:
            connection.execute(delete(training_points).where(_P.run_id == run_id, _P.step >= first))
            connection.execute(insert(training_points), rows)

    def tell(self, run_id: str, state: State) -> None:
        """The run's state, as of now."""
        with self._database.writing() as connection:
            told = update(training_runs).where(_R.id == run_id)
            connection.execute(told.values(state=state, heard_ns=time.time_ns()))

    def all(self) -> list[TrainingRun]:
        """Every run with its newest point, the newest run first."""
        newest = select(_P.run_id, func.max(_P.step).label("step")).group_by(_P.run_id).subquery()
        wanted = (
            select(training_runs, training_points)
            .outerjoin(newest, newest.c.run_id == _R.id)
            .outerjoin(training_points, and_(_P.run_id == _R.id, _P.step == newest.c.step))
            .order_by(_R.created_ns.desc(), _R.id.desc())
        )
        with self._database.reading() as connection:
            return [
                TrainingRun(
                    id=row.id,
                    created_ns=row.created_ns,
                    heard_ns=row.heard_ns,
                    recipe=row.recipe,
                    folder=row.folder,
                    settings=json.loads(row.settings),
                    state=row.state,
                    last=None if row.step is None else _point(row),
                )
                for row in connection.execute(wanted)
            ]

    def points(self, run_id: str) -> list[Point]:
        """The run's curve, by step; empty for an unknown run."""
        wanted = select(training_points).where(_P.run_id == run_id).order_by(_P.step)
        with self._database.reading() as connection:
            return [_point(row) for row in connection.execute(wanted)]


def _point(row: Any) -> Point:
    return Point(
        step=row.step,
        total_steps=row.total_steps,
        stage=row.stage,
        loss=row.loss,
        num_tokens=row.num_tokens,
        elapsed_s=row.elapsed_s,
        rest=json.loads(row.rest),
    )
