"""The marks an answer can get."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grade:
    """Marks of one answer; what has no meaning for a question stays None or 0.

    exact: wholly right. loose: right once openings, endings and emphasis are taken off (IFEval). chosen: the right
    tool, whatever its arguments. f1: overlap of words with the best accepted answer, 0..1. hits, predicted, sought:
    parts (JSON fields, instructions) in common, given, wanted. bits, num_bytes: code length of a passage.
    """

    exact: bool | None = None
    loose: bool | None = None
    chosen: bool | None = None
    f1: float | None = None
    hits: int = 0
    predicted: int = 0
    sought: int = 0
    bits: float | None = None
    num_bytes: int = 0
