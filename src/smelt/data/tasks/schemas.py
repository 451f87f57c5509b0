"""Roles as JSON Schema properties: names in several styles, types, descriptions in the user's language or English."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smelt.data.tasks.catalog import roles
from smelt.data.tasks.values import INTEGER_KINDS, NUMBER_KINDS, Value, Values, enum_options

_PLAIN = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})


@dataclass(frozen=True, kw_only=True)
class Field:
    """One property of a schema, and the role whose value it holds."""

    role: str
    name: str
    schema: dict[str, Any]
    optional: bool = False
    enum_language: str | None = None

    def draw(self, v: Values) -> Value:
        """A value for it."""
        return v.draw(roles()[self.role].kind, self.enum_language)


def make_fields(v: Values, role_names: Sequence[str], described: str) -> list[Field]:
    """Properties for the roles (a trailing ~ marks an optional one), descriptions in language `described`."""
    style = v.rng.random()
    taken: set[str] = set()
    found = []
    for marked in role_names:
        role, optional = marked.rstrip("~"), marked.endswith("~")
        name = _property_name(v, role, style, described, taken)
        taken.add(name)
        schema, enum_language = _property_schema(v, role, described)
        found.append(Field(role=role, name=name, schema=schema, optional=optional, enum_language=enum_language))
    return found


def object_schema(v: Values, fields: Sequence[Field]) -> dict[str, Any]:
    """The object schema a client would send for `fields`."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {field.name: field.schema for field in fields},
        "required": [field.name for field in fields if not field.optional],
    }
    if v.chance(0.25):
        schema["additionalProperties"] = False
    return schema


def arguments_json(pairs: Sequence[tuple[Field, Value]]) -> str:
    """A JSON object in schema order, values spelled as drawn."""
    return "{" + ",".join(f'"{field.name}":{value.json}' for field, value in pairs) + "}"


def _property_name(v: Values, role: str, style: float, described: str, taken: set[str]) -> str:
    spec = roles()[role]
    options = [name for name in spec.properties if name not in taken]
    name = options[0] if options and v.chance(0.45) else v.pick(options or [role])
    if style > 0.82:
        label = spec.labels[described].translate(_PLAIN).replace("-", "_").replace(" ", "_").lower()
        name = label if label not in taken else name
    elif style > 0.72:
        head, *tail = name.split("_")
        name = head + "".join(part.capitalize() for part in tail)
    return name if name not in taken else f"{name}_{len(taken)}"


def _property_schema(v: Values, role: str, described: str) -> tuple[dict[str, Any], str | None]:
    spec = roles()[role]
    schema: dict[str, Any] = {"type": "string"}
    enum_language = None
    if spec.kind in INTEGER_KINDS:
        schema = {"type": "integer"}
    elif spec.kind in NUMBER_KINDS:
        schema = {"type": "number"}
    elif spec.kind == "items":
        schema = {"type": "array", "items": {"type": "string"}}
    elif options := enum_options(spec.kind, described):
        enum_language = described
        schema["enum"] = options
    if v.chance(0.5):
        schema["description"] = spec.descriptions[described]
    return schema, enum_language
