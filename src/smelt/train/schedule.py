"""The rate at a step: warm-up, constant, linear to zero."""

from __future__ import annotations

from dataclasses import dataclass

from smelt.train.config import ScheduleConfig


@dataclass(kw_only=True)
class Plan:
    """Where the run ends and its decay begins; with a deadline both are settled on the way."""

    decay_start: int
    total_steps: int
    settled: bool

    @classmethod
    def of(cls, config: ScheduleConfig) -> Plan:
        """The plan before the first step."""
        start = round(config.total_steps * (1 - config.decay_share))
        return cls(decay_start=start, total_steps=config.total_steps, settled=config.deadline_s is None)

    def settle(self, config: ScheduleConfig, step: int, elapsed_s: float) -> None:
        """With a deadline: start the decay when its share of the time is left, as long as the rate so far allows."""
        if self.settled or config.deadline_s is None or step == 0:
            return
        remaining = config.deadline_s - elapsed_s
        if remaining <= config.decay_share * config.deadline_s:
            self.decay_start = step
            self.total_steps = step + max(1, int(remaining / (elapsed_s / step)))
            self.settled = True
        else:
            self.decay_start = self.total_steps = step + 1_000_000  # not yet known

    def scale(self, config: ScheduleConfig, step: int) -> float:
        """Factor of the peak rates at `step` (0, 1, ...)."""
        warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
        if step < self.decay_start:
            return warm
        left = (self.total_steps - step) / max(1, self.total_steps - self.decay_start)
        return warm * max(0.0, left)
