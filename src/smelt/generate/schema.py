"""JSON Schemas from strangers: bounded before anything reads them, refused in words when they cannot be honoured.

Every walk is iterative, nothing is fetched, and a refusal costs time linear in what was already parsed.
The wording is OpenAI's: "Invalid schema for response_format 'X': In context=(), ...".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from smelt.core.errors import InvalidRequestError
from smelt.generate.patterns import pattern_problem

MAX_DEPTH = 100  # nested JSON values; llguidance's reader stops at 128
MAX_VALUES = 50_000  # JSON values in the schema, keys included
MAX_CHARS = 500_000  # characters of all strings, names included
MAX_PROPERTIES = 5_000  # OpenAI's own limit for a whole schema
MAX_OPTIONAL = 1_000  # optional properties of one object: compiling them is quadratic (1 s at 5,000)
MAX_ENUM = 5_000
MAX_COUNT = 1_000_000  # minLength and its kind
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "additionalItems", "contentSchema",
)  # fmt: skip
Context = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose schema it is, for messages: `label` is "response_format 'X'" or "function 'f'"."""

    label: str
    param: str
    code: str | None = None

    def refuse(self, problem: str, context: Context | None = None) -> InvalidRequestError:
        """The error to raise. The problem is cut to one line: schema text must not flood an answer or a log."""
        where = "" if context is None else f"In context={_shown(context)}, "
        line = problem.strip().splitlines()[0][:300] if problem.strip() else "it cannot be honoured."
        return InvalidRequestError(f"Invalid schema for {self.label}: {where}{line}", param=self.param, code=self.code)


def check_schema(schema: Any, subject: Subject) -> int:
    """Raise InvalidRequestError unless `schema` is small, well-formed and self-contained.

    Returns the characters of its names and strings. Whether every keyword can be honoured is for llguidance to say
    when it compiles the result.
    """
    if not isinstance(schema, Mapping):
        raise subject.refuse(f"expected an object, but got {_kind(schema)} instead.")
    num_chars = _check_size(schema, subject)
    num_properties = num_enum = 0
    for node, context in subschemas(schema):
        if isinstance(node, bool):
            continue
        if not isinstance(node, Mapping):
            raise subject.refuse(f"{_kind(node)} is not a schema; an object or a boolean is.", context)
        _check_node(node, context, subject)
        _check_reference(node, context, subject, schema)
        num_properties += len(node.get("properties", ()))
        num_enum += len(node.get("enum", ()))
        if num_properties > MAX_PROPERTIES:
            raise subject.refuse(f"it has more than {MAX_PROPERTIES} properties.", context)
        if num_enum > MAX_ENUM:
            raise subject.refuse(f"it has more than {MAX_ENUM} enum values.", context)
    return num_chars


def subschemas(schema: Any) -> Iterator[tuple[Any, Context]]:
    """Every schema within `schema`, itself first, with the path that leads to it. Values of const and enum are data."""
    stack: list[tuple[Any, Context]] = [(schema, ())]
    while stack:
        node, context = stack.pop()
        yield node, context
        if isinstance(node, Mapping):
            stack.extend(reversed(list(_children(node, context))))


def _children(node: Mapping[str, Any], context: Context) -> Iterator[tuple[Any, Context]]:
    for key in _MAPS:
        children = node.get(key)
        if isinstance(children, Mapping):
            yield from ((child, (*context, key, name)) for name, child in children.items())
    for key in _LISTS:
        children = node.get(key)
        if isinstance(children, list | tuple):
            yield from ((child, (*context, key, str(i))) for i, child in enumerate(children))
    for key in _SINGLE:
        child = node.get(key)
        if isinstance(child, list | tuple):
            yield from ((item, (*context, key, str(i))) for i, item in enumerate(child))
        elif child is not None:
            yield child, (*context, key)


def _check_size(schema: Mapping[str, Any], subject: Subject) -> int:
    stack: list[tuple[Any, int]] = [(schema, 1)]
    values, chars = 1, 0  # seen so far, those on the stack included
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise subject.refuse(f"it is nested deeper than {MAX_DEPTH} levels.")
        if isinstance(value, str):
            chars += len(value)
        elif isinstance(value, Mapping | list | tuple):
            values += len(value) * (2 if isinstance(value, Mapping) else 1)
            if values > MAX_VALUES:
                raise subject.refuse(f"it has more than {MAX_VALUES} values.")
            if isinstance(value, Mapping):
                chars += sum(map(len, value))
            children = value.values() if isinstance(value, Mapping) else value
            stack.extend((child, depth + 1) for child in children)
        if chars > MAX_CHARS:
            raise subject.refuse(f"its names and strings have more than {MAX_CHARS} characters.")
    return chars


def _check_node(node: Mapping[str, Any], context: Context, subject: Subject) -> None:
    types = node.get("type", ())
    for name in (types,) if isinstance(types, str) else types if isinstance(types, list | tuple) else (None,):
        if not isinstance(name, str) or name not in _TYPES:
            raise subject.refuse(f"{_shown_value(name)} is not valid under any of the types {sorted(_TYPES)}.", context)
    for key in _MAPS:
        if key in node and not isinstance(node[key], Mapping):
            raise subject.refuse(f"{key!r} must be an object of schemas, not {_kind(node[key])}.", context)
    for key in (*_LISTS, "enum", "required"):
        if key in node and not isinstance(node[key], list | tuple):
            raise subject.refuse(f"{key!r} must be an array, not {_kind(node[key])}.", context)
    if not all(isinstance(name, str) for name in node.get("required", ())):
        raise subject.refuse("'required' must hold strings only.", context)
    if not isinstance(node.get("format", ""), str):
        raise subject.refuse(f"'format' must be a string, not {_kind(node['format'])}.", context)
    _check_counts(node, context, subject)
    for pattern in (node.get("pattern", ""), *node.get("patternProperties", ())):
        if problem := pattern_problem(pattern):
            raise subject.refuse(problem, context)


def _check_counts(node: Mapping[str, Any], context: Context, subject: Subject) -> None:
    for key in _COUNTS:
        count = node.get(key, 0)
        if isinstance(count, bool) or not isinstance(count, int | float) or not count >= 0:
            raise subject.refuse(f"{key!r} must be a non-negative integer.", context)
        if count > MAX_COUNT:
            raise subject.refuse(f"{key!r} above {MAX_COUNT} cannot be honoured.", context)
    required = set(node.get("required", ()))
    if node.get("minProperties", 0) > max(1, len(required)):
        # the grammar cannot see that two invented keys are the same, and JSON readers keep one of them
        raise subject.refuse("'minProperties' above the number of required properties cannot be honoured.", context)
    if len(node.get("properties", ())) - len(required) > MAX_OPTIONAL:
        raise subject.refuse(f"more than {MAX_OPTIONAL} optional properties in one object.", context)


def _check_reference(node: Mapping[str, Any], context: Context, subject: Subject, root: Mapping[str, Any]) -> None:
    """A `$ref` must point into this schema and reach something that is not just another `$ref` back."""
    seen: set[str] = set()
    while "$ref" in node:
        ref = node["$ref"]
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise subject.refuse(
                f"reference {_shown_value(ref)} can only point into the schema itself ('#...').", context
            )
        if ref in seen:
            raise subject.refuse(f"reference {_shown_value(ref)} leads back to itself.", context)
        seen.add(ref)
        target = resolve(root, ref)
        if target is None:
            raise subject.refuse(f"reference {_shown_value(ref)} points to nothing.", context)
        if not isinstance(target, Mapping):
            return
        node = target


def resolve(root: Mapping[str, Any], ref: str) -> Any:
    """What a local reference (`#`, `#/a/b` with RFC 6901 escapes) points to, or None."""
    found: Any = root
    for part in ref[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list | tuple) and re.fullmatch(r"\d{1,6}", key) and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(context: Context) -> str:
    shown = context if len(context) <= 12 else (*context[:6], "...", *context[-6:])
    return repr(tuple(part[:60] for part in shown))


def _shown_value(value: Any) -> str:
    return repr(value[:60]) if isinstance(value, str) else _kind(value)
