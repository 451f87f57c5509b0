"""Gates: what the result must hold, or the run fails and nothing is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smelt.core.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True)
class Gates:
    """None: not asked for.

    max_bpb_increase: of held-out bits per byte, relative to the source's (0.02: two per cent). min_agreement: share of
    held-out tokens whose likeliest successor is the teacher's, 0..1. max_bytes: of the folder's weights, configuration
    and tokenizer. min_tok_s: decode, one user, the median on this machine.
    """

    max_bpb_increase: float | None = None
    min_agreement: float | None = None
    max_bytes: int | None = None
    min_tok_s: float | None = None

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0.0 <= self.min_agreement <= 1.0:
            raise InvalidRequestError(f"min_agreement is {self.min_agreement}; sought a share from 0 to 1")
        for name in ("max_bytes", "min_tok_s"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InvalidRequestError(f"{name} is {value}; sought a positive number")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One gate: what was sought and found. found None: it could not be measured, which fails."""

    gate: str
    sought: float
    found: float | None
    passed: bool


def verdicts(gates: Gates, source: Mapping[str, Any], result: Mapping[str, Any]) -> list[Verdict]:
    """Each gate that was asked for, from what was measured of both (`measure.Measured` as JSON)."""
    speed = result["decode_tok_s"]
    found: dict[str, float | None] = {
        "max_bpb_increase": _increase(source, result),
        "min_agreement": _value(result["agreement"]),
        "max_bytes": float(result["bytes"]),
        "min_tok_s": None if speed is None else _value(speed),
    }
    made = []
    for gate, value in found.items():
        sought = getattr(gates, gate)
        if sought is None:
            continue
        held = value is not None and (value >= sought if gate.startswith("min") else value <= sought)
        made.append(Verdict(gate=gate, sought=float(sought), found=value, passed=held))
    return made


def _increase(source: Mapping[str, Any], result: Mapping[str, Any]) -> float | None:
    before, after = _value(source["bits_per_byte"]), _value(result["bits_per_byte"])
    return None if before is None or after is None or before <= 0 else after / before - 1.0


def _value(measured: Mapping[str, Any] | None) -> float | None:
    return None if measured is None else float(measured["value"])
