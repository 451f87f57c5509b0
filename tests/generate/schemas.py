"""Random JSON Schemas of every keyword smelt may meet, sane and odd, mostly satisfiable."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = ("a", "b", "city", "name", "größe", 'quo"te', "x y")
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-100, 100), st.sampled_from(["", "red", "große", 'a"b\\c']))


def _bounds(low: str, high: str, most: int) -> st.SearchStrategy[dict[str, Any]]:
    pairs = st.tuples(st.integers(0, most), st.integers(0, most)).map(sorted)
    return st.one_of(
        st.just({}), pairs.map(lambda p: {low: p[0], high: p[1]}), st.integers(0, most).map(lambda n: {high: n})
    )


_strings = st.one_of(
    _bounds("minLength", "maxLength", 12),
    st.sampled_from(
        [
            {"pattern": "^[a-z]{2,5}$"},
            {"pattern": "[0-9]+"},
            {"pattern": "^(foo|bar|baz)-\\d{1,3}$"},
            {"pattern": "^\\S+$", "maxLength": 5},
            {"format": "date"},
            {"format": "date-time"},
            {"format": "uuid"},
            {"format": "ipv4"},
            {"format": "email"},
            {"format": "int32"},
            {"format": "regex"},
        ]
    ),
).map(lambda fields: {"type": "string", **fields})

_numbers = st.one_of(
    st.tuples(st.integers(-50, 50), st.integers(-50, 50)).map(sorted).map(lambda p: {"minimum": p[0], "maximum": p[1]}),
    st.sampled_from([{}, {"exclusiveMinimum": 0, "maximum": 9}, {"multipleOf": 5, "minimum": 0, "maximum": 100}]),
).flatmap(lambda fields: st.sampled_from(["integer", "number"]).map(lambda kind: {"type": kind, **fields}))

_leaves = st.one_of(
    _strings,
    _numbers,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {}, True, {"type": ["string", "null"]}, {"title": "any"}]),
    st.lists(_SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    _SCALARS.map(lambda value: {"const": value}),
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    def finish(properties: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        required = st.lists(st.sampled_from(sorted(properties) or ["a"]), unique=True, max_size=len(properties))
        more = st.one_of(
            st.just({}),
            st.sampled_from([{"additionalProperties": False}, {"additionalProperties": True}, {"maxProperties": 4}]),
            inner.map(lambda schema: {"additionalProperties": schema}),
            inner.map(lambda schema: {"patternProperties": {"^x-": schema}}),
        )
        return st.tuples(required, more).map(
            lambda parts: {"type": "object", "properties": properties, "required": parts[0], **parts[1]}
        )

    return st.dictionaries(st.sampled_from(NAMES), inner, max_size=4).flatmap(finish)


def _arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.tuples(inner, _bounds("minItems", "maxItems", 4)).map(lambda p: {"type": "array", "items": p[0], **p[1]}),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda items: {"type": "array", "prefixItems": items, "items": False}
        ),
        inner.map(lambda item: {"type": "array", "items": item, "uniqueItems": True}),
    )


def _combined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"oneOf": parts}),
        st.lists(_objects(inner), min_size=2, max_size=2).map(lambda parts: {"allOf": parts}),
        st.tuples(_objects(inner), inner).map(lambda p: {**p[0], "anyOf": [p[1], {"required": ["a"]}]}),
        inner.map(lambda part: {"not": part}),
        inner.map(lambda part: {"$ref": "#/$defs/d", "$defs": {"d": part}}),
    )


def _tree(leaf: Any) -> dict[str, Any]:
    """A schema that refers to itself."""
    return {
        "type": "object",
        "properties": {"value": leaf, "kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
        "required": ["value"],
        "additionalProperties": False,
    }


_nested = st.recursive(
    _leaves, lambda inner: st.one_of(_objects(inner), _arrays(inner), _combined(inner)), max_leaves=6
)


def _hoist(schema: Any) -> dict[str, Any]:
    """`$defs` of inner schemas moved to the root, where their references point."""
    found: dict[str, Any] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$defs" in node and "$ref" in node:
            name = f"d{len(found)}"
            found[name] = None
            found[name] = walk(node["$defs"]["d"])
            return {"$ref": f"#/$defs/{name}"}
        return {key: walk(value) for key, value in node.items()}

    root = walk(schema)
    if not isinstance(root, dict):
        root = {"anyOf": [root]}
    return {**root, "$defs": found} if found else root


json_schemas: st.SearchStrategy[dict[str, Any]] = st.one_of(
    _objects(_nested).map(_hoist), _nested.map(_hoist), _leaves.map(_tree)
)
