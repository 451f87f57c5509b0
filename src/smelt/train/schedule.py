"""The rate at a step: warm-up, constant, linear to zero."""

from __future__ import annotations

from dataclasses import dataclass

from smelt.core.errors import CheckpointError
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

    def resumed(self, config: ScheduleConfig, step: int) -> Plan:
        """The plan that a run goes on with at `step` under `config`; self is the plan it was stopped with.

        Where the rate has not begun to fall, a run may be made longer or shorter: one long stage of constant rate can
        end in several models. Raises CheckpointError where it has, or would have by the new plan.
        """
        if config.deadline_s is not None:
            return self
        asked = Plan.of(config)
        if asked == self or step <= min(self.decay_start, asked.decay_start):
            return asked
        raise CheckpointError(
            f"the run stands at step {step}; its rate falls from step {self.decay_start} to {self.total_steps} and "
            f"would fall from {asked.decay_start} to {asked.total_steps}: sought a length that changes no step taken"
        )

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
