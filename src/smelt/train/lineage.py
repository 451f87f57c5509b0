"""Where a model comes from, as a chain: every entry carries the hash of the one before it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from smelt.core.errors import CheckpointError

RECORDS = frozenset({"card.json", "lineage.json", "report.json", "report.html"})
"""Files that tell of a model and are no part of what it computes."""

_LIBRARIES = ("smelt", "torch", "numpy", "tokenizers", "safetensors")
_PIECE_BYTES = 1 << 22


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


def bare(chain: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps without their hashes: `chained` gives them the same ones again."""
    return [{key: value for key, value in entry.items() if key not in ("previous", "hash")} for entry in chain]


def read_chain(folder: Path) -> list[dict[str, Any]]:
    """The entries of a folder's lineage.json as they stand, none where it has no such file.

    Raises CheckpointError for a file that holds no list of entries.
    """
    path = folder / "lineage.json"
    if not path.is_file():
        return []
    try:
        chain = json.loads(path.read_text(encoding="utf-8"))["chain"]
        if not isinstance(chain, list) or not all(isinstance(entry, dict) for entry in chain):
            raise TypeError("chain is no list of objects")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"lineage.json of {folder.name} cannot be read: {error!r:.80}") from error
    return chain


def checked_chain(folder: Path) -> list[dict[str, Any]]:
    """As `read_chain`. Raises CheckpointError also where an entry was changed after the chain was made."""
    chain = read_chain(folder)
    if (broken := broken_at(chain)) is not None:
        raise CheckpointError(
            f"lineage.json of {folder.name} was changed: entry {broken} does not fit the one before it"
        )
    return chain


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            found.update(piece)
    return found.hexdigest()


def libraries() -> dict[str, str]:
    """Versions of what decides a result's digits; those that are installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def digest(value: Any) -> str:
    """sha256 of the value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hardware(device: str) -> dict[str, Any]:
    """Where something was computed; `accelerator` by its own name where there is one."""
    if device.startswith("cuda"):
        import torch

        device = torch.cuda.get_device_name(device)
    return {"cores": os.cpu_count(), "machine": platform.machine(), "accelerator": None if device == "cpu" else device}
