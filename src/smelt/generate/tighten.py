"""A schema as it is handed to llguidance: nothing that only describes, and no open ends nobody asked for.

Whatever the tightened schema accepts, the original accepts too; a property test holds it to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smelt.generate.schema import subschemas

_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "$comment", "deprecated", "readOnly", "writeOnly",
     "x-guidance", "nullable"}
)  # fmt: skip
# Formats JSON Schema defines; any other name is an annotation by the standard (2020-12 validation, 7.2.3), such as
# OpenAPI's int32. llguidance refuses those of these it does not know.
_FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
     "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex"}
)  # fmt: skip
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DATA = ("enum", "const", "required", "type")


def tighten(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without annotations, and with `additionalProperties: false` where an object lists its properties
    and says nothing of others: a small model would otherwise invent keys. An explicit `true` or schema stays.

    Objects stay open wherever closing one could contradict another part of the schema (allOf, oneOf, siblings of
    references). Expects a schema that passed `check_schema`: recursion is bounded by its depth.
    """
    closing = all(_closable(node) for node, _ in subschemas(schema) if isinstance(node, Mapping))
    tightened = _tighten(schema, closing)
    assert isinstance(tightened, dict)
    return tightened


def _closable(node: Mapping[str, Any]) -> bool:
    if "allOf" in node or "oneOf" in node:
        return False
    combined = "anyOf" in node or "$ref" in node
    return not (combined and any(key in node for key in ("properties", "required", "minProperties")))


def _tighten(node: Any, closing: bool) -> Any:
    if isinstance(node, list | tuple):
        return [_tighten(item, closing) for item in node]
    if not isinstance(node, Mapping):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in _ANNOTATIONS or (key == "format" and not (isinstance(value, str) and value in _FORMATS)):
            continue
        if key in _DATA:
            out[key] = value
        elif key in _SCHEMA_MAPS and isinstance(value, Mapping):
            out[key] = {name: _tighten(child, closing) for name, child in value.items()}
        else:
            out[key] = _tighten(value, closing)
    if closing and _lists_all(node):
        out["additionalProperties"] = False
    return out


def _lists_all(node: Mapping[str, Any]) -> bool:
    says_more = ("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties")
    properties, required = node.get("properties"), node.get("required", ())
    # What is no schema (an enum's object, a number's bound) comes by here too and was not checked.
    if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
        return False
    return not any(key in node for key in says_more) and all(
        isinstance(name, str) and name in properties for name in required
    )
