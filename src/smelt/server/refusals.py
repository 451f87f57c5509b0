"""Refuses what the matrix calls refused, before anything else looks at a request's body."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from smelt.core.errors import InvalidRequestError
from smelt.server.errors import shown
from smelt.server.matrix import UNSUPPORTED_PARAMETER, UNSUPPORTED_VALUE, Row


def refuse(body: dict[str, Any], rows: tuple[Row, ...]) -> None:
    """Raise InvalidRequestError for the first refused field or value; drop refused fields that are null."""
    for row in rows:
        if row.status == "refused" or row.only or row.refuses:
            for path, container, key in list(_occurrences(body, row.path)):
                _check(row, path, container, key)


def _check(row: Row, path: str, container: dict[str, Any], key: str) -> None:
    value = container[key]
    if value is None:
        if row.status == "refused":
            del container[key]
    elif row.status == "refused":
        message = f"Unsupported parameter: '{path}' is not supported with this model."
        raise InvalidRequestError(f"{message} {row.hint}".rstrip(), param=path, code=UNSUPPORTED_PARAMETER)
    elif (row.only and value not in row.only) or value in row.refuses:
        message = f"Unsupported value: '{path}' does not support {shown(json.dumps(value))} with this model."
        if row.only:
            message += f" Supported values are: {', '.join(json.dumps(good) for good in row.only)}."
        raise InvalidRequestError(message, param=path, code=UNSUPPORTED_VALUE)


def _occurrences(value: Any, pattern: str, prefix: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    """Where `pattern` ("messages[].content[].type") is present in a body: concrete path, object, key."""
    head, _, rest = pattern.partition(".")
    name = head.removesuffix("[]")
    if not isinstance(value, dict) or name not in value:
        return
    path = f"{prefix}.{name}" if prefix else name
    if not rest:
        yield path, value, name
    elif not head.endswith("[]"):
        yield from _occurrences(value[name], rest, path)
    elif isinstance(value[name], list):
        for i, item in enumerate(value[name]):
            yield from _occurrences(item, rest, f"{path}[{i}]")
