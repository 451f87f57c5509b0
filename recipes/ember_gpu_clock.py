"""The time of a run in several commands: when each stops, and how much of it teacher and student may take.

The rule, kept in `plan.json`. With c commands of m seconds each, of which `reserve_s` at the end and `start_s` at the
start of every later one go to no training, what is left at any moment is

    left = (m - reserve_s - spent in this command) + (commands to come) * (m - start_s - reserve_s)

The teacher is given `teacher_share` of what is left when it begins, the student all that is left when the teacher is
done, each after `start_s` to compile and less `slack`; both are written down then and stay. Each is the deadline of its
run (train/schedule.py): the rate begins to fall when `decay_share` of that time is left, and the number of steps from
there is what the speed measured until then allows. A first minute's speed would miss a later command's; the mean so
far is as early as it has to be. What the teacher takes too long, the student has less; and a student whose falling
rate is under way when a later command begins has its last steps cut to what still fits (`Fitting` in ember_gpu.py).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smelt.data.corpus.shards import write_whole


@dataclass(frozen=True, kw_only=True)
class Times:
    """minutes: of wall time per command; commands: how many there will be.

    reserve_s: imports before this clock starts, and checkpoint, export and archive after it stops. start_s: reading the
    data and compiling. least_s: what a part gets where the time is used up; more commands than planned then finish it.
    """

    minutes: float = 9.5
    commands: int = 3
    start_s: float = 75.0
    reserve_s: float = 40.0
    teacher_share: float = 0.55
    slack: float = 0.05
    least_s: float = 120.0


@dataclass
class Clock:
    """This command's clock; the file is read and counted up when it begins."""

    times: Times
    file: Path
    began: float = field(default_factory=time.monotonic)
    ran_out: bool = False

    def __post_init__(self) -> None:
        self.told: dict[str, Any] = json.loads(self.file.read_text()) if self.file.is_file() else {"commands": 0}
        self.tell(commands=self.told["commands"] + 1)

    def tell(self, **values: Any) -> None:
        """Keep values in the file."""
        self.told |= values
        write_whole(self.file, (json.dumps(self.told, indent=1) + "\n").encode())

    @property
    def here_s(self) -> float:
        """Seconds of this command that are left for training."""
        return self.times.minutes * 60 - self.times.reserve_s - (time.monotonic() - self.began)

    @property
    def left_s(self) -> float:
        """Seconds left for training in this command and those to come."""
        to_come = max(0, self.times.commands - self.told["commands"])
        later = self.times.minutes * 60 - self.times.start_s - self.times.reserve_s
        return float(max(0.0, self.here_s) + to_come * max(0.0, later))

    @property
    def may_begin(self) -> bool:
        """Whether this command has the time to compile and to take a few steps."""
        return self.here_s > self.times.start_s

    @property
    def fitting_s(self) -> float:
        """Seconds left to plan with."""
        return (1 - self.times.slack) * self.left_s

    def deadline(self, part: str, share: float) -> float:
        """Seconds of training for `part`: `share` of what is left when this is asked first, the same ever after."""
        key = f"{part}_s"
        if key not in self.told:
            fitting_s = self.fitting_s - (1 - self.times.slack) * self.times.start_s
            self.tell(**{key: round(max(self.times.least_s, share * fitting_s), 1)})
        return float(self.told[key])

    @contextmanager
    def stops(self, stopping: threading.Event) -> Iterator[None]:
        """Set `stopping` (and `ran_out`) when this command's time is over."""

        def ring() -> None:
            if not stopping.is_set():
                self.ran_out = True
                stopping.set()

        timer = threading.Timer(max(0.0, self.here_s), ring)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
