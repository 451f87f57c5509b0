"""Schemas that require themselves without end are told from those that may stop."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from smelt.generate.finite import has_finite_instance
from tests.generate.schemas import json_schemas

NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}}
LIST = {"type": "array", "items": {"$ref": "#"}}


@pytest.mark.parametrize(
    "schema",
    [
        NODE | {"required": ["next"]},
        LIST | {"minItems": 1},
        {"type": "array", "prefixItems": [{"type": "string"}, {"$ref": "#"}], "minItems": 2},
        {"type": "object", "required": ["x"], "additionalProperties": {"$ref": "#"}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [NODE | {"required": ["next"]}, {"$ref": "#/$defs/a"}]}}},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}}},
    ],
)
def test_endless(schema: dict[str, Any]) -> None:
    assert not has_finite_instance(schema)


def chain(length: int) -> dict[str, Any]:
    """A reference to a reference to a ... to a string."""
    links: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": {"type": "string"}}}


@pytest.mark.parametrize(
    "schema",
    [
        NODE,
        LIST,
        LIST | {"minItems": 0},
        {"type": "array", "prefixItems": [{"type": "string"}, {"$ref": "#"}], "minItems": 1},
        {"type": ["object", "null"], "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"anyOf": [NODE | {"required": ["next"]}, {"type": "null"}]},
        {"type": "object", "properties": {"n": {"enum": [1]}, "o": {"$ref": "#/properties/n"}}, "required": ["n", "o"]},
        chain(150),
        chain(400),
    ],
)
def test_may_stop(schema: dict[str, Any]) -> None:
    assert has_finite_instance(schema)


@given(json_schemas)
def test_no_random_schema_is_refused_wrongly(schema: dict[str, Any]) -> None:
    """The generator only builds recursion through optional arrays."""
    assert has_finite_instance(schema)
