"""A reader over a config that knows which keys were asked for, so that no key is silently ignored."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from smelt.core.errors import CheckpointError, UnsupportedError

_MISSING = object()


def show(value: Any) -> str:
    """A value for a message, shortened."""
    return repr(value)[:80]


class ConfigReader:
    """Typed access to one JSON object of a config; `prefix` stands before keys in messages.

    A key whose value is null counts as absent, as it does in transformers. Raises CheckpointError for a missing
    key or a wrong type, UnsupportedError for what smelt does not do.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "config.json: ") -> None:
        self._values = values
        self._prefix = prefix
        self._taken: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def says(self, key: str) -> bool:
        """Whether the key is written down, be it as null."""
        return key in self._values

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """The raw value. Without a default the key must be there."""
        self._taken.add(key)
        value = self._values.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            raise CheckpointError(f"{self._prefix}{key} is missing")
        return default

    def whole(self, key: str, default: Any = _MISSING, *, at_least: int = 1, at_most: int = 1 << 31) -> int:
        """A whole number within bounds."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
            raise self.wrong(key, value, f"a whole number {at_least}..{at_most}")
        return value

    def number(self, key: str, default: Any = _MISSING, *, above: float = 0.0) -> float:
        """A finite number greater than `above`."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, value, "a number")
        if not above < value <= sys.float_info.max:  # a comparison, as a vast integer has no float
            raise self.wrong(key, value, f"a finite number above {above:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def section(self, key: str) -> dict[str, Any] | None:
        """A nested object, or None where it is absent."""
        value = self.take(key, None)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return value

    def harmless(self, keys: frozenset[str]) -> None:
        """Mark keys that cannot change what the model computes."""
        self._taken |= keys

    def only(self, key: str, *allowed: Any, why: str) -> None:
        """The key may be absent or hold one of `allowed`; anything else is refused with the reason."""
        value = self.take(key, None)
        if value is not None and not any(
            value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed
        ):
            raise self.refuse(key, value, why)

    def finish(self, reasons: Mapping[str, str]) -> None:
        """Refuse whatever nobody asked for; `reasons` explains keys that are known and not supported."""
        for key, value in self._values.items():
            if key not in self._taken and value is not None:
                raise self.refuse(key, value, reasons.get(key, "smelt does not know this key, and it could matter"))

    def wrong(self, key: str, value: Any, sought: str) -> CheckpointError:
        """The error for a malformed value."""
        return CheckpointError(f"{self._prefix}{key} must be {sought}, found {show(value)}")

    def refuse(self, key: str, value: Any, why: str) -> UnsupportedError:
        """The error for a well-formed value that asks for too much."""
        return UnsupportedError(f"{self._prefix}{key} = {show(value)} is not supported: {why}")
