"""What a run is told: every number that decides the outcome, and how it is computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smelt.train.distributed import Parallel
from smelt.train.hardware import Precision


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms.

    Rates are peaks of the schedule. `muon_lr` follows Jordan 2024 (orthogonalised momentum, scaled by
    max(1, rows/cols)^0.5); `weight_decay` is decoupled and multiplies the rate, for matrices only.
    """

    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.02
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Warm-up, constant, linear to zero (WSD, Hu et al. 2024).

    `total_steps` ends the run and starts the decay at (1 - decay_share) * total_steps. With `deadline_s` (seconds of
    wall time for the whole run) the decay starts when only `decay_share` of the time is left, and its length in
    steps is what the measured rate allows; that choice is written into the state, so a resumed run keeps it.
    """

    total_steps: int
    warmup_steps: int = 40
    decay_share: float = 0.4
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run. `accumulate` batches make one step, over all processes; `ema`: the weight average's decay, 0 none.

    A run may go on with another length than it began with as long as no step already taken would have been another
    (Plan.resumed). The fields behind `ema` say how it is computed, and change rounding at most: they may change too.
    `workers` threads each compute whole batches of a step, one core each: on two shared cores that was 1.6 times
    as fast as two threads inside every operation (6.2k against 3.7k tokens/s), because nothing waits at barriers.
    Gradients are summed in the batches' order, so the outcome does not depend on it. `checkpoint_layers` trades a
    third more work for the memory of one layer; `compile` uses torch.compile; checkpoints every `checkpoint_s` seconds
    and at the end.
    """

    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig
    accumulate: int = 1
    seed: int = 0
    ema: float = 0.0
    workers: int = 1
    device: str = "auto"
    precision: Precision = "auto"
    parallel: Parallel = "replicate"
    checkpoint_layers: bool = False
    compile: bool = False
    checkpoint_s: float = 300.0
    log_every: int = 10

    def decisive(self) -> dict[str, Any]:
        """The fields that decide what the steps already taken were."""
        how = "workers device precision parallel checkpoint_layers compile checkpoint_s log_every".split()
        found = {name: value for name, value in asdict(self).items() if name not in how}
        return found | {
            "schedule": {"warmup_steps": self.schedule.warmup_steps, "deadline_s": self.schedule.deadline_s}
        }
