"""Tools and JSON Schemas as short, TypeScript-like lines: what a small model reads instead of nested JSON.

    get_weather(city: string /*City name*/, unit?: "c"|"f"="c") //Current weather

Constraints follow a type in parentheses (`integer(1..10)`, `string(date)`), definitions that a `$ref` names follow
as `Name = type` lines. What this notation cannot say (not, if/then/else, patternProperties, ...) is written as
compact JSON. Titles and examples are left out. The same schema always gives the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import ResponseFormat, Tool

MAX_DEPTH = 64

_DEFINITION = re.compile(r"#/(?:\$defs|definitions)/([^/]+)\Z")
# Keywords that say nothing about which values are valid.
_SILENT_WORDS = "title $schema $id $comment examples deprecated readOnly writeOnly strict nullable"
_SILENT = frozenset(_SILENT_WORDS.split())
_COMMON = _SILENT | {"description", "default", "type", "$defs", "definitions"}
_CHOICES = ("anyOf", "oneOf", "allOf", "enum", "type")
_BY_TYPE: dict[str, frozenset[str]] = {
    "string": frozenset({"format", "pattern", "minLength", "maxLength"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "boolean": frozenset(),
    "null": frozenset(),
}


def tool_signatures(tools: Sequence[Tool]) -> str:
    """One line per tool, and a line per definition its parameters refer to."""
    return "\n".join(_tool(tool) for tool in tools)


def schema_signature(response_format: ResponseFormat) -> str:
    """The required shape of an answer: `object` for any JSON object, else its type."""
    if response_format.kind == "json_object" or response_format.schema is None:
        return "object"
    writer = _Writer(response_format.schema)
    label = f"{response_format.name} " if response_format.name else ""
    words = f"{response_format.description} {_description(response_format.schema)}"
    return label + writer.type(response_format.schema, 0) + _comment(words) + writer.definitions()


def _tool(tool: Tool) -> str:
    writer = _Writer(tool.parameters)
    parameters = tool.parameters
    fields = parameters.get("properties", {})
    extra = parameters.get("additionalProperties")
    expressible = set(parameters) <= _COMMON | _BY_TYPE["object"] and isinstance(fields, Mapping)
    if expressible and parameters.get("type", "object") == "object" and extra in (None, True, False):
        body = ", ".join(writer.fields(parameters, 0))
    else:
        body = "..." + writer.type(parameters, 0)
    words = f"{tool.description} {_description(parameters)}"
    return f"{tool.name}({body}){_comment(words)}{writer.definitions()}"


def _description(schema: Any) -> str:
    text = schema.get("description") if isinstance(schema, Mapping) else None
    return text if isinstance(text, str) else ""


def _comment(text: str) -> str:
    words = " ".join(text.split())
    return f" //{words}" if words else ""


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError("a schema must be JSON") from error


class _Writer:
    """Writes the types of one schema document, collecting the definitions it meets."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._wanted: list[str] = []

    def definitions(self) -> str:
        """`Name = type` lines of every definition met, each once, in order of first mention."""
        lines: list[str] = []
        while len(lines) < len(self._wanted):
            name = self._wanted[len(lines)]
            definition = self._definition(name)
            lines.append(f"\n{name} = {self.type(definition, 0)}{_comment(_description(definition))}")
        return "".join(lines)

    def type(self, schema: Any, depth: int) -> str:
        """The type a schema describes."""
        if depth > MAX_DEPTH:
            raise InvalidRequestError(f"a schema nested deeper than {MAX_DEPTH} levels is not supported")
        if schema is True or schema == {}:
            return "any"
        if schema is False:
            return "never"
        if not isinstance(schema, Mapping):
            return _json(schema)
        written = self._written(schema, depth)
        return _json(schema) if written is None else written

    def _written(self, schema: Mapping[str, Any], depth: int) -> str | None:
        """The type in this notation; None where it cannot be said."""
        rest = set(schema) - _COMMON
        if rest == {"$ref"}:
            return self._reference(schema["$ref"])
        if rest == {"const"}:
            return _json(schema["const"])
        if rest == {"enum"} and isinstance(schema["enum"], list) and schema["enum"]:
            return "|".join(map(_json, schema["enum"]))
        for keyword, joint in (("anyOf", "|"), ("oneOf", "|"), ("allOf", "&")):
            choices = schema.get(keyword)
            if rest == {keyword} and isinstance(choices, list) and choices:
                return joint.join(self._inner(choice, depth + 1) for choice in choices)
        kinds = schema.get("type")
        if kinds is None:
            fitting = [kind for kind, words in _BY_TYPE.items() if rest and rest <= words]
            return self._single(fitting[0], schema, depth) if fitting else ("any" if not rest else None)
        names = kinds if isinstance(kinds, list) else [kinds]
        if not names or not all(isinstance(kind, str) and kind in _BY_TYPE for kind in names):
            return None
        if not rest <= frozenset().union(*(_BY_TYPE[kind] for kind in names)):
            return None
        parts = [self._single(kind, schema, depth) for kind in names]
        return None if None in parts else "|".join(part for part in parts if part)

    def _single(self, kind: str, schema: Mapping[str, Any], depth: int) -> str | None:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        return kind + _constraints(kind, schema)

    def _inner(self, schema: Any, depth: int) -> str:
        """A type that stands inside a larger one."""
        text = self.type(schema, depth)
        return (f"({text})" if _is_compound(schema) else text) + _note(schema)

    def _array(self, schema: Mapping[str, Any], depth: int) -> str | None:
        prefix = schema.get("prefixItems")
        if isinstance(prefix, list) and set(schema) <= _COMMON | {"prefixItems", "items"}:
            entries = [self.type(item, depth + 1) + _note(item) for item in prefix]
            if (rest := schema.get("items", False)) is not False:
                entries.append("..." + self._inner(rest, depth + 1) + "[]")
            return f"[{', '.join(entries)}]"
        if prefix is not None:
            return None
        return self._inner(schema.get("items", True), depth + 1) + "[]" + _constraints("array", schema)

    def _object(self, schema: Mapping[str, Any], depth: int) -> str | None:
        if not isinstance(schema.get("properties", {}), Mapping):
            return None
        entries = self.fields(schema, depth)
        extra = schema.get("additionalProperties", False)
        if extra is not False and extra is not True:
            entries.append("[key]: " + self.type(extra, depth + 1))
        if not entries and "properties" not in schema:
            return "object"
        return "{" + ", ".join(entries) + "}"

    def fields(self, schema: Mapping[str, Any], depth: int) -> list[str]:
        """`name?: type=default /*description*/` of every property, in the schema's own order."""
        required = schema.get("required", [])
        needed = set(required) if _all_strings(required) else set()
        entries = []
        for name, field in schema.get("properties", {}).items():
            key = name if name.isidentifier() else _json(name)
            mark = "" if name in needed else "?"
            entries.append(f"{key}{mark}: {self.type(field, depth + 1)}{_note(field)}")
        return entries

    def _reference(self, target: Any) -> str | None:
        if target == "#":
            return "self"
        found = _DEFINITION.match(target) if isinstance(target, str) else None
        if not found or self._definition(found[1]) is None:
            return None
        if found[1] not in self._wanted:
            self._wanted.append(found[1])
        return found[1]

    def _definition(self, name: str) -> Any:
        for home in ("$defs", "definitions"):
            group = self._root.get(home)
            if isinstance(group, Mapping) and name in group:
                return group[name]
        return None


def _all_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _note(field: Any) -> str:
    if not isinstance(field, Mapping):
        return ""
    default = f"={_json(field['default'])}" if "default" in field else ""
    words = " ".join(_description(field).split()).replace("*/", "* /")
    return default + (f" /*{words}*/" if words else "")


def _constraints(kind: str, schema: Mapping[str, Any]) -> str:
    notes: list[str] = []
    low, high = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}.get(
        kind, ("minimum", "maximum")
    )
    if kind in {"boolean", "null"}:
        return ""
    if low in schema or high in schema:
        notes.append(f"{_json(schema[low]) if low in schema else ''}..{_json(schema[high]) if high in schema else ''}")
    for keyword, mark in (("exclusiveMinimum", ">"), ("exclusiveMaximum", "<"), ("multipleOf", "*")):
        if keyword in schema and keyword in _BY_TYPE[kind]:
            notes.append(mark + _json(schema[keyword]))
    if "format" in schema and "format" in _BY_TYPE[kind]:
        notes.append(str(schema["format"]))
    if "pattern" in schema and kind == "string":
        notes.append(f"/{schema['pattern']}/")
    if schema.get("uniqueItems") is True and kind == "array":
        notes.append("unique")
    return f"({','.join(notes)})" if notes else ""


def _is_compound(schema: Any) -> bool:
    """Whether a type is written with `|` or `&` and so needs brackets inside a larger one."""
    if not isinstance(schema, Mapping):
        return False
    return any(isinstance(schema.get(word), list) and len(schema[word]) > 1 for word in _CHOICES)
