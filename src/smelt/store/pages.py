"""Lists in pieces, by a cursor that names the last object seen: what is added or deleted meanwhile shifts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Order = Literal["asc", "desc"]
MAX_PAGE_LEN = 100
MAX_PAGE_CHARS = 2**24  # of JSON; a page ends early rather than hold more, unless its first object alone does


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Up to `limit` objects behind `after` (None: from the start), oldest first unless `order` is "desc"."""

    after: str | None = None
    limit: int = 20
    order: Order = "asc"


@dataclass(frozen=True)
class Page(Generic[T]):
    """The objects, and whether others follow."""

    items: tuple[T, ...]
    has_more: bool
