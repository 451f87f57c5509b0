"""Object ids that sort by age, so that a place in a list is known by its id alone, even after the object is deleted."""

from __future__ import annotations

import re
from secrets import token_hex

_TIMED = re.compile(r"[a-z]+-([0-9a-f]{16})[0-9a-f]{16}")


def timed_id(prefix: str, created_ns: int) -> str:
    """`prefix`, the time in nanoseconds since 1970, 64 random bits."""
    return f"{prefix}-{created_ns:016x}{token_hex(8)}"


def created_ns_of(object_id: str) -> int | None:
    """The time in an id that `timed_id` made; None for another."""
    found = _TIMED.fullmatch(object_id)
    return int(found[1], 16) if found else None
