"""Every field path of a JSON Schema with `$ref`s: `messages[].content[].text`, free-form objects as leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schemas = Mapping[str, Any]


def field_paths(schema: Mapping[str, Any], schemas: Schemas, prefix: str = "") -> Iterator[str]:
    """The paths of all properties below `schema`; alternatives (anyOf, oneOf, allOf) are merged."""
    if "$ref" in schema:
        yield from field_paths(schemas[schema["$ref"].rpartition("/")[2]], schemas, prefix)
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key, ()):
            yield from field_paths(part, schemas, prefix)
    if "items" in schema:
        yield from field_paths(schema["items"], schemas, prefix + "[]")
    for name, inner in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        yield path
        yield from field_paths(inner, schemas, path)
