"""Where a model comes from, as a chain: every entry carries the hash of the one before it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from typing import Any


def chained(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps with `previous` (hash of the entry before, 64 zeros for the first) and their own `hash`."""
    found: list[dict[str, Any]] = []
    previous = "0" * 64
    for step in steps:
        entry = {**step, "previous": previous}
        previous = digest(entry)
        found.append({**entry, "hash": previous})
    return found


def broken_at(chain: Sequence[dict[str, Any]]) -> int | None:
    """Index of the first entry that was changed after the chain was made, or None."""
    previous = "0" * 64
    for i, entry in enumerate(chain):
        body = {name: value for name, value in entry.items() if name != "hash"}
        if entry.get("previous") != previous or entry.get("hash") != digest(body):
            return i
        previous = entry["hash"]
    return None


def digest(value: Any) -> str:
    """sha256 of the value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hardware(device: str) -> dict[str, Any]:
    """Where something was computed; `accelerator` by its own name where there is one."""
    if device.startswith("cuda"):
        import torch

        device = torch.cuda.get_device_name(device)
    return {"cores": os.cpu_count(), "machine": platform.machine(), "accelerator": None if device == "cpu" else device}
