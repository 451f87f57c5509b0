"""Training runs in the store: written while a run goes on, at its side, and listed by `smelt train --runs`."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from smelt.core.errors import InvalidRequestError, TrainingStoppedError

if TYPE_CHECKING:
    from smelt.store.location import Location
    from smelt.store.runs import Point, State, TrainingRun, TrainingRuns
    from smelt.train.report import Report

WRITE_EVERY_S = 1.0  # points come at most this often to the store, all that gathered in one transaction
ALIVE_EVERY_S = 30.0  # a run without news says that it lives, and a store that failed is tried again
LOST_AFTER_S = 4 * ALIVE_EVERY_S  # without a word: killed, or its machine is asleep
CLOSE_S = 15.0  # the store's own waits (`store.database.BUSY_S`) fit in
MAX_KEPT = 10_000  # points held for a store that fails, the newest


def located(store: str | None) -> Location | None:
    """Where `--store` says, else the place `smelt serve` uses; None for "none". Raises InvalidRequestError."""
    from smelt.store.location import default_path, locate

    try:
        return locate(str(default_path()) if store is None else store)
    except ValueError as error:
        raise InvalidRequestError(f"--store: {error}") from None


def named(folder: Path) -> str:
    """The id of the run in `folder`, which is called so from now on: a run that goes on is the same one."""
    from smelt.store.ids import timed_id

    path = folder / "run_id"
    if not path.is_file() or not path.read_text().strip():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(timed_id("run", time.time_ns()) + "\n")
    return path.read_text().strip()


@contextmanager
def recorded(store: str | None, folder: Path, recipe: str, settings: Mapping[str, Any]) -> Iterator[Recorder | None]:
    """A recorder for the run in `folder` while it goes on, None for `--store none`; says at the end how it ended."""
    location = located(store)
    if location is None:
        yield None
        return
    from smelt.store.runs import TrainingRun  # a machine without a store need not have its libraries

    now, state = time.time_ns(), "failed"
    run = TrainingRun(
        id=named(folder), created_ns=now, heard_ns=now, recipe=recipe, folder=str(folder.absolute()), settings=settings,
        state="running",
    )  # fmt: skip
    recorder = Recorder(location, run)
    recorder.tried.wait(CLOSE_S)
    try:
        yield recorder
        state = "finished"
    except (TrainingStoppedError, KeyboardInterrupt):
        state = "stopped"
        raise
    finally:
        recorder.close(cast("State", state))


class Recorder:
    """Writes a run's points from a thread of its own, so that training waits for no disk, no lock and no network.

    A store that fails costs a warning, once; what it did not take is offered again later, and at the end. `tried` is
    set when the store was opened or could not be: until then modules are being imported, and a process that were forked
    from another thread then (they prepare data) could wait for such an import forever.
    """

    def __init__(self, location: Location, run: TrainingRun) -> None:
        self._location, self._run = location, run
        self._points: deque[Point] = deque(maxlen=MAX_KEPT)
        self._ending, self._warned = threading.Event(), False
        self._state: State = "running"
        self.tried = threading.Event()
        self._thread = threading.Thread(target=self._work, name="training-store", daemon=True)
        self._thread.start()

    def show(self, report: Report) -> None:
        """Take a point in; returns at once."""
        self._points.append(as_point(report))

    def close(self, state: State) -> None:
        """Write what is left and how the run ended; a store that does not answer is waited for at most `CLOSE_S`."""
        self._state = state
        self._ending.set()
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        while True:
            last = self._ending.is_set()
            try:
                self._write()
                return
            except Exception as error:  # of any kind: a run of days does not end for its diary
                self._warn(error)
                self.tried.set()
            if last:
                return
            self._ending.wait(ALIVE_EVERY_S)

    def _write(self) -> None:
        """Open the store and write to it until the run ends."""
        from smelt.store.database import Database
        from smelt.store.runs import TrainingRuns

        with closing(Database.open(self._location)) as database:
            runs = TrainingRuns(database)
            runs.begin(self._run)
            self.tried.set()
            heard, ended = time.monotonic(), False
            while not ended:
                ended = self._ending.wait(WRITE_EVERY_S)
                self._hand_over(runs)
                if not ended and time.monotonic() - heard >= ALIVE_EVERY_S:
                    runs.tell(self._run.id, "running")
                    heard = time.monotonic()
            runs.tell(self._run.id, self._state)

    def _hand_over(self, runs: TrainingRuns) -> None:
        taken = [self._points.popleft() for _ in range(len(self._points))]
        try:
            runs.add(self._run.id, taken)
        except BaseException:
            self._points.extendleft(reversed(taken))
            raise

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            print(f"smelt: training goes on, but its curve is not in the store: {error}", file=sys.stderr, flush=True)


def as_point(report: Report) -> Point:
    """A report as the store keeps it."""
    from smelt.store.runs import Point

    values = asdict(report)
    return Point(**{one.name: values.pop(one.name) for one in fields(Point) if one.name != "rest"}, rest=values)


def runs_command(store: str | None, *, as_json: bool) -> None:
    """List the runs of the store, the newest first. Raises StoreError."""
    runs = stored_runs(located(store))
    print(json.dumps({"runs": runs}, ensure_ascii=False) if as_json else listed(runs))


def stored_runs(location: Location | None) -> list[dict[str, Any]]:
    """Every run as JSON values; none where there is no store (yet)."""
    if location is None or not location.exists:
        return []
    from smelt.store.database import Database
    from smelt.store.runs import TrainingRuns

    with closing(Database.open(location)) as database:
        found = TrainingRuns(database).all()
    return [_told(run, time.time_ns()) for run in found]


def _told(run: TrainingRun, now_ns: int) -> dict[str, Any]:
    lost = run.state == "running" and now_ns - run.heard_ns > LOST_AFTER_S * 1e9
    last = run.last
    return {
        "id": run.id,
        "recipe": run.recipe,
        "folder": run.folder,
        "state": "lost" if lost else run.state,
        "created": run.created_ns // 10**9,
        "heard": run.heard_ns // 10**9,
        "step": last.step if last else 0,
        "total_steps": last.total_steps if last else None,
        "stage": last.stage if last else None,
        "loss": last.loss if last else None,
        "num_tokens": last.num_tokens if last else 0,
        "elapsed_s": last.elapsed_s if last else 0.0,
        "settings": dict(run.settings),
    }


def listed(runs: Sequence[Mapping[str, Any]]) -> str:
    """The runs for a terminal."""
    if not runs:
        return "no training runs in the store yet"
    rows = [("begun", "recipe", "state", "step", "loss", "tokens", "minutes", "folder")]
    for run in runs:
        begun = datetime.fromtimestamp(run["created"]).astimezone().strftime("%Y-%m-%d %H:%M")
        loss = "" if run["loss"] is None else f"{run['loss']:.4f}"
        steps = f"{run['step']}/{run['total_steps']}" if run["total_steps"] else ""
        tokens, minutes = f"{run['num_tokens'] / 1e6:.2f}M", f"{run['elapsed_s'] / 60:.1f}"
        rows.append((begun, run["recipe"], run["state"], steps, loss, tokens, minutes, run["folder"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
