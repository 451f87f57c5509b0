"""Lists: what may be asked of one in the query string, and how one is answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request

from smelt.core.errors import InvalidRequestError, NotFoundError
from smelt.server.errors import shown
from smelt.server.validation import Body
from smelt.store.pages import MAX_PAGE_LEN

MAX_METADATA_PAIRS = 16
MAX_KEY_LEN, MAX_VALUE_LEN = 64, 512

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=MAX_KEY_LEN)], Annotated[str, Field(max_length=MAX_VALUE_LEN)]],
    Field(max_length=MAX_METADATA_PAIRS),
]
_INTEGER = re.compile(r"-?[0-9]{1,9}")


class ListQuery(Body):
    """A place in a list and how much of it is wanted."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_LEN)] = 20
    order: Literal["asc", "desc"] = "asc"


class CompletionsQuery(ListQuery):
    """Which stored completions."""

    model: str | None = None
    metadata: Metadata | None = None


def query_of(request: Request) -> dict[str, Any]:
    """The query string as an object: `limit` as a number, `metadata[k]=v` as an object. Raises InvalidRequestError."""
    query: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        head, bracket, key = name.partition("[")
        if bracket and key.endswith("]"):
            group, key = query.setdefault(head, {}), key[:-1]
        else:
            group, key = query, name
        if not isinstance(group, dict) or key in group:
            raise InvalidRequestError(f"Duplicate parameter: '{shown(name)}'.", param=shown(name))
        group[key] = int(value) if name == "limit" and _INTEGER.fullmatch(value) else value
    return query


def list_body(items: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """OpenAI's list object; every item has an id."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def nothing_after(after: str | None) -> NotFoundError:
    """404 for a cursor that names no place in the list."""
    return NotFoundError(f"No object found with id '{shown(after or '')}'.", param="after")
