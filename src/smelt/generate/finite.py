"""Whether any finite JSON satisfies a schema that refers to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smelt.generate.schema import resolve, subschemas

MAX_PASSES = 200  # each pass settles at least one more link of a chain of references
_SCALARS = frozenset({"string", "number", "integer", "boolean", "null"})


def has_finite_instance(schema: Mapping[str, Any]) -> bool:
    """False where every instance would have to contain another of its kind without end, as a node that requires a
    node. Such a schema compiles, and its answers never end.

    The least fixed point of "all that is required is finite", over the schema's own nodes; other reasons for having
    no instance are llguidance's to find. Expects a schema that passed `check_schema`.
    """
    nodes = [node for node, _ in subschemas(schema) if isinstance(node, Mapping)]
    if not any("$ref" in node for node in nodes):
        return True
    finite: set[int] = set()  # by identity: the nodes live as long as the schema
    for _ in range(MAX_PASSES):
        before = len(finite)
        for node in reversed(nodes):  # children before parents
            if id(node) not in finite and _is_finite(node, schema, finite):
                finite.add(id(node))
        if id(schema) in finite:
            return True
        if len(finite) == before:
            return False
    return True  # not known: leave it to the limit on the answer's length


def _is_finite(node: Mapping[str, Any], root: Mapping[str, Any], finite: set[int]) -> bool:
    def settled(part: Any) -> bool:
        return not isinstance(part, Mapping) or id(part) in finite

    if "const" in node or "enum" in node:
        return True
    if "$ref" in node and not settled(resolve(root, node["$ref"])):
        return False
    if not all(map(settled, node.get("allOf", ()))):
        return False
    for key in ("anyOf", "oneOf"):
        if node.get(key) and not any(map(settled, node[key])):
            return False
    types = node.get("type", ())
    if _SCALARS & set((types,) if isinstance(types, str) else types):
        return True
    if "object" in types:
        properties = node.get("properties", {})
        more = node.get("additionalProperties")
        return all(settled(properties.get(name, more)) for name in node.get("required", ()))
    if "array" in types:
        first = [*node.get("prefixItems", ()), node.get("items")]
        return all(map(settled, first[: int(node.get("minItems", 0))]))
    return True
