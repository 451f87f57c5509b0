"""JSON files of a model folder, read without trust: size, depth, duplicates and odd numbers are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from smelt.core.errors import CheckpointError

MAX_JSON_BYTES = 16 << 20


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} occurs twice")
        found[key] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `data`; `name` is how messages call it. Raises CheckpointError for anything else."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(f"{name}: not a valid JSON object: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: sought a JSON object, found {type(value).__name__}")
    return value


def read_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `max_bytes`. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise CheckpointError(f"{path.name}: more than {max_bytes} bytes, no model folder needs that")
    return parse_object(data, path.name)


def dump(value: Any) -> bytes:
    """Readable JSON, ending in a newline; refuses NaN and infinities."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def compact(value: Any) -> bytes:
    """JSON without a needless byte."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
