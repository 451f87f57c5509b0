"""Tools and schemas as short lines: what each construct looks like, and that any schema has a line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.chat.signatures import schema_signature, tool_signatures
from smelt.core.errors import InvalidRequestError
from smelt.core.messages import ResponseFormat, Tool
from tests.tokenizer.samples import steady

TYPES: list[tuple[Any, str]] = [
    (True, "any"),
    ({}, "any"),
    (False, "never"),
    ({"type": "string", "title": "T", "examples": ["x"]}, "string"),
    ({"type": "string", "format": "date", "minLength": 1, "pattern": "^a"}, "string(1..,date,/^a/)"),
    ({"type": "integer", "minimum": 1, "maximum": 10}, "integer(1..10)"),
    ({"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5}, "number(>0,*0.5)"),
    ({"type": ["string", "null"]}, "string|null"),
    ({"type": "string", "nullable": True}, "string"),  # OpenAPI's word, not JSON Schema's: the grammar has no null
    ({"enum": ["a", 1, None]}, '"a"|1|null'),
    ({"type": "string", "enum": ["京"]}, '"京"'),
    ({"const": {"a": 1}}, '{"a":1}'),
    ({"type": "array"}, "any[]"),
    ({"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True}, "string[](1..,unique)"),
    ({"type": "array", "items": {"enum": ["a", "b"]}}, '("a"|"b")[]'),
    ({"type": "array", "items": {"type": "string", "description": "a word"}}, "string /*a word*/[]"),
    ({"type": "array", "prefixItems": [{"type": "string"}, {}], "items": False}, "[string, any]"),
    ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "null"}}]}, "string|null[]"),
    ({"allOf": [{"type": "object"}, {"enum": [1, 2]}]}, "object&(1|2)"),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, "{[key]: integer}"),
    ({"type": "object", "properties": {}, "additionalProperties": False}, "{}"),
    ({"minimum": 3}, "number(3..)"),
    (
        {"type": "object", "properties": {"a": {"type": "string"}, "b-c": {}}, "required": ["a"]},
        '{a: string, "b-c"?: any}',
    ),
    ({"properties": {"a": {"type": "boolean", "default": True, "description": "On\n or */ off"}}},
     "{a?: boolean=true /*On or * / off*/}"),
    ({"not": {"type": "string"}}, '{"not":{"type":"string"}}'),
    ({"type": "string", "if": {}}, '{"type":"string","if":{}}'),
    ({"type": "colour"}, '{"type":"colour"}'),
    ({"$ref": "https://example.org/schema"}, '{"$ref":"https://example.org/schema"}'),
    ({"$ref": "#/$defs/Missing"}, '{"$ref":"#/$defs/Missing"}'),
    ({"properties": 3}, '{"properties":3}'),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "expected"), TYPES, ids=[str(i) for i in range(len(TYPES))])
def test_type_of_a_property(schema: Any, expected: str) -> None:
    form = ResponseFormat(kind="json_schema", schema={"properties": {"x": schema}, "required": ["x"]})
    assert schema_signature(form) == f"{{x: {expected}}}"


def test_tools_one_a_line_with_definitions_after_them() -> None:
    tree = {
        "type": "object",
        "description": "One node",
        "properties": {"label": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
        "required": ["label"],
    }
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "City name"},
            "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
            "tree": {"$ref": "#/$defs/Tree"},
        },
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"Tree": tree, "Unused": {"type": "null"}},
    }
    tools = [
        Tool("get_weather", "Current weather\n  in a city", parameters),
        Tool("stop"),
        Tool("either", "", {"anyOf": [{"type": "object"}]}),
    ]
    assert tool_signatures(tools) == (
        'get_weather(city: string /*City name*/, unit?: "c"|"f"="c", tree?: Tree) //Current weather in a city\n'
        "Tree = {label: string, kids?: Tree[]} //One node\n"
        "stop()\n"
        "either(...object)"
    )


def test_response_formats() -> None:
    assert schema_signature(ResponseFormat(kind="json_object")) == "object"
    schema = {"type": "object", "properties": {"self": {"$ref": "#"}}, "description": "of a shop"}
    form = ResponseFormat(kind="json_schema", name="order", description="An order", schema=schema)
    assert schema_signature(form) == "order {self?: self} //An order of a shop"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYWORDS = st.sampled_from(
    ["type", "enum", "const", "anyOf", "allOf", "items", "properties", "required", "$ref", "description", "default",
     "minimum", "maxItems", "format", "nullable", "additionalProperties", "prefixItems", "$defs", "pattern"]
)  # fmt: skip
SCHEMAS = st.recursive(
    st.dictionaries(KEYWORDS, JSON | st.sampled_from(["string", "object", "array", "#", "#/$defs/a"]), max_size=4),
    lambda inner: st.dictionaries(
        KEYWORDS,
        inner | st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_size=4,
    ),
    max_leaves=8,
)


@steady
@given(schema=SCHEMAS)
def test_any_schema_has_a_line_always_the_same(schema: dict[str, Any]) -> None:
    copy = json.loads(json.dumps(schema))
    line = tool_signatures([Tool("f", "", schema)])
    assert line == tool_signatures([Tool("f", "", copy)])
    assert line.startswith("f(")


def test_endless_schemas_are_refused() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(70):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InvalidRequestError, match="64 levels"):
        tool_signatures([Tool("f", "", {"type": "object", "properties": {"x": deep}})])
    deep = {}
    for _ in range(100_000):
        deep = {"not": deep}
    with pytest.raises(InvalidRequestError, match="must be JSON"):
        tool_signatures([Tool("f", "", {"type": "object", "properties": {"x": deep}})])
