"""OpenAI's strict subset of JSON Schema: what `strict: true` promises, and the words of its refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from smelt.generate.schema import Context, Subject, subschemas

MAX_LEVELS = 10
MAX_ENUM = 1_000
MAX_LONG_ENUM_CHARS = 15_000
LONG_ENUM = 250
MAX_NAME_CHARS = 120_000
_NOT_PERMITTED = (
    "allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties",
    "unevaluatedProperties", "unevaluatedItems", "propertyNames", "contains", "minContains", "maxContains",
    "uniqueItems", "minProperties", "maxProperties",
)  # fmt: skip
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")


def check_strict(schema: Mapping[str, Any], subject: Subject) -> None:
    """Raise InvalidRequestError where `schema`, already well-formed, leaves the subset."""
    if schema.get("type") != "object":
        found = schema.get("type")
        raise subject.refuse(f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{found}\"'.")
    num_enum = name_chars = 0
    for node, context in subschemas(schema):
        if isinstance(node, bool) and context[-1] == "additionalProperties":
            continue  # judged with its object
        if not isinstance(node, Mapping):
            raise subject.refuse("a boolean is not permitted as a schema.", context)
        _check_keywords(node, context, subject)
        _check_object(node, context, subject)
        if context.count("properties") + context.count("items") > MAX_LEVELS:
            raise subject.refuse(f"it is nested deeper than {MAX_LEVELS} levels.", context)
        values = [value if isinstance(value, str) else json.dumps(value) for value in node.get("enum", ())]
        if len(values) > LONG_ENUM and sum(map(len, values)) > MAX_LONG_ENUM_CHARS:
            raise subject.refuse(
                f"an enum of more than {LONG_ENUM} values may have {MAX_LONG_ENUM_CHARS} characters in all.", context
            )
        num_enum += len(values)
        name_chars += sum(map(len, values)) + sum(map(len, node.get("properties", ())))
        if num_enum > MAX_ENUM:
            raise subject.refuse(f"it has more than {MAX_ENUM} enum values.", context)
        if name_chars > MAX_NAME_CHARS:
            raise subject.refuse(f"names and enum values have more than {MAX_NAME_CHARS} characters.", context)


def _check_keywords(node: Mapping[str, Any], context: Context, subject: Subject) -> None:
    for keyword in _NOT_PERMITTED:
        if keyword in node:
            raise subject.refuse(f"'{keyword}' is not permitted.", context)
    if "format" in node and node["format"] not in _FORMATS:
        raise subject.refuse(f"'format' must be one of {', '.join(_FORMATS)}.", context)
    if not any(key in node for key in ("type", "$ref", "anyOf", "enum", "const")):
        raise subject.refuse("schema must have a 'type' key.", context)
    if "array" in _types(node) and "items" not in node and "prefixItems" not in node:
        raise subject.refuse("array schema missing items.", context)


def _check_object(node: Mapping[str, Any], context: Context, subject: Subject) -> None:
    if "object" not in _types(node) and "properties" not in node:
        return
    if node.get("additionalProperties") is not False:
        raise subject.refuse("'additionalProperties' is required to be supplied and to be false.", context)
    required = set(node.get("required", ()))
    properties = node.get("properties", {})
    missing = [name for name in properties if name not in required]
    if missing:
        raise subject.refuse(
            "'required' is required to be supplied and to be an array including every key in properties. "
            f"Missing '{missing[0][:60]}'.",
            context,
        )
    extra = sorted(required - set(properties))
    if extra:
        raise subject.refuse(f"'required' names '{extra[0][:60]}', which is not in properties.", context)


def _types(node: Mapping[str, Any]) -> tuple[str, ...]:
    types = node.get("type", ())
    return (types,) if isinstance(types, str) else tuple(types)
