"""A stage of the chain: a checkpoint in, a checkpoint out, and what it says of itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from smelt.checkpoint import Checkpoint
    from smelt.compress.calibration import Calibration
    from smelt.data.batches import Batch
    from smelt.train.loop import Stream


@dataclass(frozen=True, kw_only=True)
class Material:
    """What stages measure on and learn from.

    calibration: sequences that statistics are taken from. held_out: batches no stage learns from, and the bytes of text
    their learned targets stand for. stream: what a repair learns from, by seed. digest: of all of it, for identities.
    """

    calibration: Calibration
    held_out: Sequence[Batch]
    held_out_bytes: int
    stream: Callable[[int], Stream]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """done of total steps, layers or candidates, whichever `unit` says; left_s: seconds left, None where unknown."""

    unit: str
    done: int
    total: int
    left_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where a stage works.

    out: the folder to write, whole or not at all. scratch: survives a kill and is empty at first; what was finished
    there is not done again, and the result is the same to the bit. teacher: the model the chain began with.
    `stopping`, once set, ends the stage soon by TrainingStoppedError, with the scratch in order.
    """

    out: Path
    scratch: Path
    material: Material
    teacher: Checkpoint
    say: Callable[[str], None] = print
    on_progress: Callable[[Progress], None] = lambda _: None
    stopping: threading.Event = field(default_factory=threading.Event)


def how(default: Any) -> Any:
    """A field that changes no digit of the outcome (threads, a device, how often to save): in no stage's identity."""
    return field(default=default, metadata={"how": True})


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a stage takes at its peak: memory, and room on the disk for its scratch and its result. flops: 0 unknown."""

    memory_bytes: int
    disk_bytes: int
    flops: float = 0.0


class Stage(Protocol):
    """A frozen dataclass: with the input's hash and the material's digest its fields decide the outcome.

    Fields made by `how` say how it is computed and decide nothing. A stage may have a method
    `needs(config: DecoderConfig) -> Needs`; without one the chain takes a few copies of the weights for granted.
    """

    @property
    def name(self) -> str:
        """A short word for reports: prune, distil, quantize."""
        ...

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """Write `work.out` and return facts for the report, JSON values.

        Raises InvalidRequestError for settings that do not fit `source`, before any work.
        """
        ...
