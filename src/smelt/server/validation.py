"""From a parsed body to a typed request, with OpenAI's words and codes for what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError
from pydantic_core import ErrorDetails

from smelt.core.errors import InvalidRequestError
from smelt.server.errors import shown
from smelt.server.matrix import Row
from smelt.server.refusals import refuse

EXPECTED = "expected_type"  # our pydantic error type: the message is what was expected


class Body(BaseModel):
    """A JSON object of a request: no coercion, no unknown key."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


B = TypeVar("B", bound=Body)


def _json_kind(value: Any) -> str | None:
    kinds: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return kinds.get(type(value))


STRING, ARRAY, OBJECT = Tag("string"), Tag("array"), Tag("object")


def by_kind(expected: str) -> Discriminator:
    """Chooses a union's member by JSON type, so that only its errors show; `expected` names the types."""
    return Discriminator(_json_kind, custom_error_type=EXPECTED, custom_error_message=expected)


def validate(model: type[B], body: dict[str, Any], rows: tuple[Row, ...]) -> B:
    """`body` as a `model`. Raises InvalidRequestError for the first thing wrong with it."""
    refuse(body, rows)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=True)[0]
        raise _translated(first, body) from None


def too_many(param: str, limit: int, found: int) -> InvalidRequestError:
    """An array beyond a limit that the settings set."""
    return InvalidRequestError(
        f"Invalid '{param}': array too long. Expected an array with maximum length {limit}, "
        f"but got an array with length {found} instead.",
        param=param,
        code="array_above_max_length",
    )


def above_maximum(param: str, limit: float, found: float) -> InvalidRequestError:
    """A number beyond a limit."""
    return _out_of_range(param, "above", "<=", limit, found)


def one_of(values: Sequence[str]) -> str:
    """'a', 'b', and 'c'."""
    quoted = [f"'{value}'" for value in values]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def _out_of_range(path: str, side: str, sign: str, limit: float, found: float) -> InvalidRequestError:
    kind = "decimal" if isinstance(limit, float) else "integer"
    bound = "maximum" if side == "above" else "minimum"
    edge = f"{limit:g}" if isinstance(limit, float) else str(limit)
    return InvalidRequestError(
        f"Invalid '{path}': {kind} {side} {bound} value. "
        f"Expected a value {sign} {edge}, but got {shown(str(found))} instead.",
        param=path,
        code=f"{kind}_{side}_{bound[:3]}_value",
    )


def _path(loc: tuple[int | str, ...], body: Any, *, absent: bool) -> str:
    """The offending field as `a[0].b`; `absent`: the last step is a field the body lacks.

    Pydantic's location also has the tags of union members; they are not in the body and are left out.
    """
    path, value = "", body
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(step, int):
            path += f"[{step}]"
            value = value[step] if isinstance(value, list) and step < len(value) else None
        elif isinstance(value, dict) and (step in value or (last and absent)):
            path += f".{step}" if path else step
            value = value.get(step)
    return path


_WANTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal",
    "string_type": "a string",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _got(value: Any) -> str:
    if value is None:
        return "null"
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a decimal number", list: "an array"}
    return names.get(type(value), "an object")


def _translated(error: ErrorDetails, body: Any) -> InvalidRequestError:
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    path = _path(error["loc"], body, absent=kind == "missing")
    if kind == "extra_forbidden":
        path = shown(path, 128)
        return InvalidRequestError(f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")
    if kind in {"missing", "union_tag_not_found"}:
        if kind == "union_tag_not_found":
            path += "." + context["discriminator"].strip("'")
        return InvalidRequestError(
            f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter"
        )
    if kind == EXPECTED and found is None and path.endswith(".content"):
        return InvalidRequestError(
            "Invalid value for 'content': expected a string, got null.", param=path, code="invalid_type"
        )
    if kind == EXPECTED or kind in _WANTED:
        wanted = error["msg"] if kind == EXPECTED else _WANTED[kind]
        message = f"Invalid type for '{path}': expected {wanted}, but got {_got(found)} instead."
        return InvalidRequestError(message, param=path, code="invalid_type")
    if kind == "less_than_equal":
        return _out_of_range(path, "above", "<=", context["le"], found)
    if kind == "greater_than_equal":
        return _out_of_range(path, "below", ">=", context["ge"], found)
    if kind == "string_too_long" and len(error["loc"]) > 1 and error["loc"][-2:] == (found, "[key]"):
        return _long_name(path, found, context["max_length"])
    return _of_length(kind, path, found, context) or _of_value(kind, path, found, context)


def _long_name(path: str, name: str, limit: int) -> InvalidRequestError:
    path = path.removesuffix(f".{name}")
    return InvalidRequestError(
        f"Invalid property name in '{path}': '{shown(name)}' is too long. Expected a string with maximum length "
        f"{limit}, but got a string with length {len(name)} instead.",
        param=path,
        code="property_name_above_max_length",
    )


def _of_length(kind: str, path: str, found: Any, context: dict[str, Any]) -> InvalidRequestError | None:
    """Too long or too short: strings, arrays, objects."""
    if kind == "too_long" and not isinstance(found, dict):
        return too_many(path, context["max_length"], len(found))
    if kind == "string_too_long":
        problem, limit, code = "string too long", context["max_length"], "string_above_max_length"
        expected = f"a string with maximum length {limit}, but got a string with length {len(found)}"
    elif kind == "string_too_short":
        problem, code = "empty string", "empty_string"
        expected = "a string with minimum length 1, but got an empty string"
    elif kind == "too_short":
        problem, code = "empty array", "empty_array"
        expected = "an array with minimum length 1, but got an empty array"
    elif kind == "too_long":
        problem, limit, code = "too many properties", context["max_length"], "object_above_max_properties"
        expected = f"an object with at most {limit} properties, but got an object with {len(found)} properties"
    else:
        return None
    return InvalidRequestError(f"Invalid '{path}': {problem}. Expected {expected} instead.", param=path, code=code)


def _of_value(kind: str, path: str, found: Any, context: dict[str, Any]) -> InvalidRequestError:
    """Of the right type, and wrong."""
    if kind in {"literal_error", "union_tag_invalid"}:
        allowed = context["expected"] if kind == "literal_error" else context["expected_tags"]
        values = [value.strip().strip("'") for value in allowed.replace(" or ", ", ").split(", ")]
        if kind == "union_tag_invalid":
            name = context["discriminator"].strip("'")
            path, found = f"{path}.{name}", found[name]
        if not isinstance(found, str):
            message = f"Invalid type for '{path}': expected one of {one_of(values)}, but got {_got(found)} instead."
            return InvalidRequestError(message, param=path, code="invalid_type")
        message = f"Invalid value: '{shown(found)}'. Supported values are: {one_of(values)}."
    elif kind == "string_pattern_mismatch":
        message = (
            f"Invalid '{path}': string does not match pattern. "
            f"Expected a string that matches the pattern '{context['pattern']}'."
        )
    else:
        message = f"Invalid value for '{path}'."
    return InvalidRequestError(message, param=path, code="invalid_value")
