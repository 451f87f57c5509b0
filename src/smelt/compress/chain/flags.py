"""Red flags: where a stage claims a benefit that was not delivered, or the result collapsed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Claim = Literal["parameters", "bytes", "speed", "no_slower", "quality"]

CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    "prune": ("parameters", "bytes", "speed"),
    "share": ("parameters", "bytes"),
    "sparsify": ("bytes", "speed"),
    "quantize": ("bytes", "no_slower"),  # not faster: weights in floating point are served in 8 bits too
    "quantize-aware": ("bytes", "no_slower"),
    "linearise": ("speed",),
    "distil": ("quality",),
    "finetune": ("quality",),
}
"""What a stage of that name is taken to promise, unless its facts have `claims` of their own."""

_COLLAPSE = 0.20  # relative growth of bits per byte over one stage
_SURE = 0.95  # what a speed's interval must hold to accuse by: one sample is no interval at all


def flags(name: str, facts: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Sentences, none where all is well. before, after: what was measured of the stage's input and of its result."""
    claims = facts.get("claims", CLAIMS.get(name, ()))
    found: list[str] = []
    if "parameters" in claims and after["parameters"] >= before["parameters"]:
        found.append(f"{name}: no fewer parameters ({before['parameters']:,} before, {after['parameters']:,} after)")
    if "bytes" in claims and after["bytes"] >= before["bytes"]:
        found.append(f"{name}: no fewer bytes on disk ({before['bytes']:,} before, {after['bytes']:,} after)")
    if "speed" in claims or "no_slower" in claims:
        found += _speed(name, before, after, faster="speed" in claims)
    if "quality" in claims and after["bits_per_byte"]["value"] >= before["bits_per_byte"]["value"]:
        found.append(f"{name}: held-out text is predicted no better ({_bits(before)} before, {_bits(after)} after)")
    grown = after["bits_per_byte"]["value"] / max(1e-9, before["bits_per_byte"]["value"]) - 1.0
    if grown > _COLLAPSE and name != "prune":  # what pruning loses is what distillation is there for
        found.append(
            f"{name}: quality collapsed, bits per byte grew by {grown:.0%} ({_bits(before)} to {_bits(after)})"
        )
    return found


def final_flags(
    source: Mapping[str, Any], result: Mapping[str, Any], rival: tuple[Mapping[str, Any], Mapping[str, Any]] | None
) -> list[str]:
    """Of the whole chain. rival: what was measured of the control, and of the chain's artifact of the same shape."""
    found = []
    grown = result["bits_per_byte"]["value"] / max(1e-9, source["bits_per_byte"]["value"]) - 1.0
    if grown > _COLLAPSE:
        found.append(f"the result's bits per byte are {grown:.0%} above the source's")
    if rival is not None and rival[0]["bits_per_byte"]["value"] <= rival[1]["bits_per_byte"]["value"]:
        found.append(
            f"the same shape trained from scratch on the same tokens is as good: {_bits(rival[0])} bits per byte "
            f"against {_bits(rival[1])}"
        )
    return found


def _speed(name: str, before: Mapping[str, Any], after: Mapping[str, Any], *, faster: bool) -> list[str]:
    old, new = before["decode_tok_s"], after["decode_tok_s"]
    if old is None or new is None or min(each.get("level", _SURE) for each in (old, new)) < _SURE:
        return []
    told = f"decode {old['value']:,.0f} tok/s before, {new['value']:,.0f} after"
    if new["interval"][1] < old["interval"][0]:
        return [f"{name}: slower than before ({told})"]
    if faster and new["interval"][0] <= old["interval"][1]:
        return [f"{name}: not measurably faster ({told}; the intervals overlap)"]
    return []


def _bits(measured: Mapping[str, Any]) -> str:
    return f"{measured['bits_per_byte']['value']:.4f}"
