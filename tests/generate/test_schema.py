"""Hostile and malformed schemas are refused in words and in no time; good ones pass."""

from __future__ import annotations

import time
from typing import Any

import pytest

from smelt.core.errors import InvalidRequestError
from smelt.generate.patterns import pattern_problem
from smelt.generate.schema import Subject, check_schema, resolve, subschemas
from smelt.generate.strict_subset import check_strict

SUBJECT = Subject("response_format 'X'", "response_format")


def nested(depth: int, key: str = "items") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {key: schema}
    return schema


HOSTILE: dict[str, tuple[Any, str]] = {
    "depth 10,000": (nested(10_000), "deeper than"),
    "depth of data 10,000": ({"const": nested(10_000)}, "deeper than"),
    "self reference": ({"$ref": "#"}, "back to itself"),
    "reference cycle": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "back to itself",
    ),
    "remote reference": ({"$ref": "http://example.com/schema.json"}, "can only point into the schema itself"),
    "file reference": ({"properties": {"a": {"$ref": "other.json#/x"}}}, "can only point into"),
    "dangling reference": ({"$ref": "#/$defs/gone"}, "points to nothing"),
    "reference of a wrong type": ({"$ref": 7}, "can only point into"),
    "1,000,000 enum values": ({"enum": list(range(1_000_000))}, "more than"),
    "6,000 enum values": ({"enum": list(range(6_000))}, "more than 5000 enum values"),
    "maxLength 1e9": ({"type": "string", "maxLength": 10**9}, "'maxLength'"),
    "maxItems 1e9": ({"type": "array", "maxItems": 10**9}, "'maxItems'"),
    "minLength negative": ({"type": "string", "minLength": -1}, "non-negative"),
    "minLength NaN": ({"type": "string", "minLength": float("nan")}, "non-negative"),
    "minLength a string": ({"type": "string", "minLength": "3"}, "non-negative"),
    "minLength infinite": ({"type": "string", "maxLength": float("inf")}, "cannot be honoured"),
    "unknown type": ({"type": "strnig"}, "'strnig' is not valid"),
    "unknown type inside": ({"properties": {"a": {"type": ["string", "nul"]}}}, "In context=('properties', 'a')"),
    "type a number": ({"type": 7}, "is not valid"),
    "type a list of lists": ({"type": [["object"]]}, "an array is not valid"),
    "type a list of objects": ({"properties": {"a": {"type": [{}]}}}, "an object is not valid"),
    "format a list": ({"properties": {"a": {"format": ["date"]}}}, "'format' must be a string, not an array"),
    "properties a list": ({"properties": []}, "'properties' must be an object"),
    "property a number": ({"properties": {"a": 7}}, "a number is not a schema"),
    "required a string": ({"required": "a"}, "'required' must be an array"),
    "required of numbers": ({"required": [1]}, "strings only"),
    "anyOf an object": ({"anyOf": {}}, "'anyOf' must be an array"),
    "nested repetition": ({"pattern": "(a+)+$"}, "repeats a repetition"),
    "lookaround": ({"pattern": "(?<=x)*"}, "lookaround"),
    "pattern of 1 MB": ({"pattern": "a" * 1_000_000}, "characters"),
    "60,000 parentheses": ({"pattern": "(" * 60_000}, "at most"),
    "1,000 parentheses": ({"pattern": "(" * 1_000}, "nests groups"),
    "pattern a number": ({"pattern": 5}, "must be a string"),
    "patternProperties pattern": ({"patternProperties": {"(?!x)": {}}}, "lookaround"),
    "100,000 properties": ({"properties": {f"p{i}": {} for i in range(100_000)}}, "more than"),
    "additionalProperties with 100,000 keys": (
        {"additionalProperties": {f"p{i}": {} for i in range(100_000)}},
        "more than",
    ),
    "6,000 properties": ({"properties": {f"p{i}": {} for i in range(6_000)}, "required": []}, "more than"),
    "long strings": ({"description": "x" * 1_000_000}, "characters"),
    "two keys that may be one": ({"type": "object", "minProperties": 2}, "'minProperties'"),
    "not a schema": (["object"], "expected an object"),
    "null": (None, "expected an object"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused_at_once(name: str) -> None:
    schema, words = HOSTILE[name]
    start = time.thread_time()
    with pytest.raises(InvalidRequestError) as caught:
        check_schema(schema, SUBJECT)
    assert time.thread_time() - start < 1.0
    assert caught.value.message.startswith("Invalid schema for response_format 'X': ")
    assert words in caught.value.message
    assert len(caught.value.message) < 700
    assert caught.value.param == "response_format"


RECURSIVE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "children": {"type": "array", "items": {"$ref": "#"}},
        "next": {"anyOf": [{"$ref": "#/$defs/node~1x"}, {"type": "null"}]},
    },
    "$defs": {"node/x": {"type": "object", "properties": {"next": {"$ref": "#"}}}},
}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": ["string", "null"], "maxLength": 100},
        RECURSIVE,
        {"properties": {"type": {"type": "string"}, "$ref": {"const": {"$ref": "http://data.example"}}}},
        {"enum": [{"type": "strnig"}, 3, None]},
        {"properties": {"a": True, "b": False}},
        {"type": "object", "required": ["a", "b"], "minProperties": 2},
    ],
)
def test_good_schemas_pass(schema: dict[str, Any]) -> None:
    check_schema(schema, SUBJECT)


def test_values_of_const_and_enum_are_not_schemas() -> None:
    """A property named "items" and data that looks like a schema must not be walked as one."""
    schema = {"properties": {"items": {"const": {"items": {"x": 1}}}}, "enum": [{"not": {}}]}
    assert [context for _, context in subschemas(schema)] == [(), ("properties", "items")]


def test_references_resolve_by_rfc_6901() -> None:
    root = {"a/b": {"m~n": [{}, {"x": 1}]}}
    assert resolve(root, "#") is root
    assert resolve(root, "#/a~1b/m~0n/1/x") == 1
    assert resolve(root, "#/a~1b/m~0n/2") is None
    assert resolve(root, "#/missing") is None


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[a-z]+$",
        r"^(\d+,)*\d+$",
        r"(?:ab+)?c*",
        r"[(+*]+",
        r"^\+?\(\d{3}\) \d{2,}$",
        r"(a|b+)+",
        r"[]a]+",
        r"a{2,}",
        "x{",
    ],
)
def test_ordinary_patterns_pass(pattern: str) -> None:
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(a*)*b", "(?:a+)*", "(?P<x>[a-z]+)+", "((a+))*", "(a{2,})+", r"(a)\1", r"(?=x)", ")", "(", "(?<!a)b"],
)
def test_dangerous_patterns_are_refused(pattern: str) -> None:
    assert pattern_problem(pattern) is not None


STRICT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["a", "b"]},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        "note": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
    },
    "required": ["name", "kind", "parts", "note"],
    "additionalProperties": False,
    "$defs": {
        "part": {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0}},
            "required": ["n"],
            "additionalProperties": False,
        }
    },
}


def test_the_strict_subset_passes() -> None:
    check_schema(STRICT, SUBJECT)
    check_strict(STRICT, SUBJECT)


def test_openais_words_for_an_open_object() -> None:
    """The body OpenAI's own clients match on (reference: error catalogue)."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    with pytest.raises(InvalidRequestError) as caught:
        check_strict(schema, SUBJECT)
    assert caught.value.message == (
        "Invalid schema for response_format 'X': In context=(), "
        "'additionalProperties' is required to be supplied and to be false."
    )
    assert (caught.value.param, caught.value.code) == ("response_format", None)


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in STRICT.items() if k != key}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (without("required"), "Missing 'name'"),
        (STRICT | {"required": ["name", "kind", "parts"]}, "including every key in properties. Missing 'note'"),
        (STRICT | {"required": [*STRICT["required"], "ghost"]}, "'ghost'"),
        (STRICT | {"additionalProperties": {"type": "string"}}, "'additionalProperties' is required"),
        ({"type": "array", "items": {"type": "string"}}, "got 'type: \"array\"'"),
        ({"anyOf": [STRICT, STRICT]}, "got 'type: \"None\"'"),
        (STRICT | {"allOf": []}, "'allOf' is not permitted"),
        (STRICT | {"not": {}}, "'not' is not permitted"),
        (STRICT | {"properties": STRICT["properties"] | {"name": {}}}, "must have a 'type' key"),
        (STRICT | {"properties": STRICT["properties"] | {"name": {"type": "array"}}}, "array schema missing items"),
        (STRICT | {"properties": STRICT["properties"] | {"name": True}}, "a boolean is not permitted"),
        (
            STRICT | {"properties": STRICT["properties"] | {"kind": {"enum": [str(i) for i in range(1001)]}}},
            "1000 enum",
        ),
        (
            STRICT | {"properties": STRICT["properties"] | {"kind": {"enum": [f"{i:060}" for i in range(300)]}}},
            "15000 characters",
        ),
        (STRICT | {"properties": STRICT["properties"] | {"name": nested(11) | {"type": "array"}}}, ""),
        (STRICT | {"properties": STRICT["properties"] | {"name": {"type": "string", "format": "uri"}}}, "'format'"),
    ],
)
def test_what_leaves_the_strict_subset_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_strict(schema, SUBJECT)
    assert words in caught.value.message
