"""Fields out of texts that nobody laid out: nested objects, lists of objects, absent and inferred values.

What the text tells and what the schema asks for are drawn apart: the schema leaves told facts out (they distract)
and asks for some that are not told (null). A value is copied, unless its property asks for a form of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from smelt.core.messages import Message, ResponseFormat, Tool
from smelt.data.example import Example, call_message
from smelt.data.tasks.absence import ask_of, distinct
from smelt.data.tasks.catalog import roles
from smelt.data.tasks.phrases import entries, phrase
from smelt.data.tasks.schemas import make_fields
from smelt.data.tasks.stories import Story, kind_name, kind_roles, kinds, outdate, told
from smelt.data.tasks.talk import system_turn
from smelt.data.tasks.typed import normalised
from smelt.data.tasks.values import Values

# Roles that may stand in an object of their own.
_GROUPS: tuple[tuple[tuple[str, ...], frozenset[str]], ...] = (
    (("customer", "contact", "person", "client"), frozenset("person email phone customer age first".split())),
    (("address", "location", "place"), frozenset("address zip city country".split())),
    (("payment", "billing", "cost"), frozenset("amount currency tax price account".split())),
    (("period", "stay", "dates"), frozenset("checkin checkout nights due date".split())),
    (("route", "trip", "leg"), frozenset("origin destination flight".split())),
    (("product", "article", "goods"), frozenset("product quantity sku color size weight".split())),
    (("schedule", "slot", "when"), frozenset("date time end_time minutes room".split())),
    (("employer", "company_info", "business"), frozenset("company url position salary".split())),
)
_ALWAYS_TYPED = frozenset({"minutes"})


@dataclass(frozen=True, slots=True)
class Node:
    """One property of the answer: its name, its schema, and its value as JSON text."""

    name: str
    schema: dict[str, Any]
    json: str


@dataclass(kw_only=True)
class Record:
    """A text, and every property that could be asked of it; `absent` are properties it does not give."""

    kind: str
    text: str
    nodes: list[Node]
    roles: list[str] = field(default_factory=list)
    absent: list[Node] = field(default_factory=list)
    absent_roles: list[str] = field(default_factory=list)


def make_record(v: Values, *, num_absent: int = 0, rich: bool = False) -> Record:
    """A told record. `rich` adds what only nested schemas hold: lists of items or people, inferred values."""
    kind = v.pick(kinds())
    v.wild = 0.35 if v.chance(0.3) else 0.0
    may = kind_roles(kind)
    count = v.rng.randint(2, min(7, len(may) - num_absent))
    drawn = v.rng.sample(may, k=count + num_absent)
    described = "en" if v.language == "en" or v.chance(0.35) else v.language
    nodes, facts = _nodes(v, drawn, described)
    story = Story(kind=kind, facts={role: facts[role] for role in drawn[:count]})
    inferred: list[Node] = []
    if rich or v.chance(0.2):
        _infer(v, story, inferred)
    if rich and v.chance(0.55):
        inferred.append(_items(v, story) if v.chance(0.65) else _people(v, story))
    if v.chance(0.25):
        outdate(v, story)
    names = {node.name for node in nodes}
    inferred = [node for node in inferred if node.name not in names]
    return Record(
        kind=kind,
        text=told(v, story),
        nodes=[*nodes[:count], *inferred],
        roles=[*drawn[:count], *("" for _ in inferred)],
        absent=nodes[count:],
        absent_roles=drawn[count:],
    )


def _nodes(v: Values, drawn: Sequence[str], described: str) -> tuple[list[Node], dict[str, str]]:
    nodes, facts = [], {}
    typed_share = v.pick([0.0, 0.3, 0.8])
    for role, made in zip(drawn, make_fields(v, drawn, described), strict=True):
        wanted = role in _ALWAYS_TYPED or v.chance(typed_share)
        typed = normalised(v, role, roles()[role].kind, described) if wanted else None
        if typed:
            facts[role] = typed.text
            nodes.append(Node(made.name, typed.schema, typed.json))
        else:
            value = made.draw(v)
            facts[role] = value.text
            nodes.append(Node(made.name, made.schema, value.json))
    return nodes, facts


def _infer(v: Values, story: Story, nodes: list[Node]) -> None:
    """One or two values that the text implies."""
    names = [name for name in entries("signals") if "." not in name]
    for name in v.rng.sample(names, k=v.pick([1, 1, 2])):
        values = [key.partition(".")[2] for key in entries("signals") if key.startswith(name + ".")]
        value = v.pick(values)
        story.clauses.append(phrase(v, f"signals/{name}.{value}"))
        property_name = v.pick(entries("signals")[name].rest.split(","))
        if value in ("true", "false"):
            nodes.append(Node(property_name, {"type": "boolean"}, value))
        else:
            v.rng.shuffle(values)
            nodes.append(Node(property_name, {"type": "string", "enum": values}, f'"{value}"'))


def _listed(v: Values, parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    comma, last = {"en": (", ", " and "), "de": (", ", " und "), "zh": ("；", "；")}[v.language]
    return comma.join(parts[:-1]) + last + parts[-1]


def _items(v: Values, story: Story) -> Node:
    keys = v.pick([("name", "quantity", "price"), ("product", "qty", "price"), ("item", "count", "amount"),
                   ("article", "units", "unit_price")])  # fmt: skip
    rows = [(v.draw("product"), v.draw("quantity_plain"), v.draw("money")) for _ in range(v.rng.randint(1, 4))]
    said = [phrase(v, "layout/item", p=p.text, q=q.text, m=m.text) for p, q, m in rows]
    story.extra.append(phrase(v, "layout/items", i=_listed(v, said)))
    schema = {
        "type": "object",
        "properties": {keys[0]: {"type": "string"}, keys[1]: {"type": "integer"}, keys[2]: {"type": "number"}},
        "required": list(keys),
    }
    text = ",".join(f'{{"{keys[0]}":{p.json},"{keys[1]}":{q.json},"{keys[2]}":{m.json}}}' for p, q, m in rows)
    return Node(v.pick(["items", "lines", "products", "positions"]), {"type": "array", "items": schema}, f"[{text}]")


def _people(v: Values, story: Story) -> Node:
    keys = v.pick([("name", "email"), ("full_name", "contact"), ("person", "mail")])
    rows = [(v.draw("person"), v.draw("email")) for _ in range(v.rng.randint(1, 3))]
    said = [phrase(v, "layout/someone", p=p.text, e=e.text) for p, e in rows]
    story.extra.append(phrase(v, "layout/people", i=_listed(v, said)))
    schema = {"type": "object", "properties": {key: {"type": "string"} for key in keys}, "required": list(keys)}
    text = ",".join(f'{{"{keys[0]}":{p.json},"{keys[1]}":{e.json}}}' for p, e in rows)
    return Node(v.pick(["participants", "people", "attendees"]), {"type": "array", "items": schema}, f"[{text}]")


def asked(v: Values, record: Record, nest: bool) -> list[Node]:
    """What the schema asks: often all the text gives, often less, and what it does not give as null."""
    pairs = list(zip(record.nodes, record.roles, strict=True))
    if len(pairs) > 1 and v.chance(0.5):
        pairs = v.rng.sample(pairs, k=v.rng.randint(1, len(pairs)))
    pairs += [(_nullable(node), role) for node, role in zip(record.absent, record.absent_roles, strict=True)]
    v.rng.shuffle(pairs)
    nodes = _nested(v, pairs) if nest else [node for node, _ in pairs]
    return nodes


def _nullable(node: Node) -> Node:
    schema = dict(node.schema)
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    schema["type"] = [schema["type"], "null"]
    return Node(node.name, schema, "null")


def _nested(v: Values, pairs: Sequence[tuple[Node, str]]) -> list[Node]:
    """Properties that belong together put into objects."""
    left = list(pairs)
    found: list[Node] = []
    for names, members in v.rng.sample(_GROUPS, k=len(_GROUPS)):
        inside = [pair for pair in left if pair[1] in members]
        taken = {node.name for node, _ in left} | {node.name for node in found}
        free = [name for name in names if name not in taken - {node.name for node, _ in inside}]
        if len(inside) >= 2 and free and v.chance(0.7):
            left = [pair for pair in left if pair not in inside]
            found.append(as_object(v.pick(free), [node for node, _ in inside]))
    found += [node for node, _ in left]
    v.rng.shuffle(found)
    return found


def as_object(name: str, nodes: Sequence[Node]) -> Node:
    """Properties as one object."""
    schema = {
        "type": "object",
        "properties": {node.name: node.schema for node in nodes},
        "required": [node.name for node in nodes],
    }
    return Node(name, schema, "{" + ",".join(f'"{node.name}":{node.json}' for node in nodes) + "}")


def json_format(v: Values, kind: str, schema: dict[str, Any]) -> ResponseFormat:
    """The response format a client would ask for, in half of the cases OpenAI's strict one."""
    strict = v.chance(0.5)
    if strict:
        _close(schema)
    name = v.pick([kind, kind.capitalize(), "answer", "result", "record", "data", "extraction"])
    return ResponseFormat(kind="json_schema", name=name, schema=schema, strict=strict)


def _close(schema: dict[str, Any]) -> None:
    """OpenAI's strict mode: no property but those named, at any depth."""
    if schema.get("type") == "object":
        schema["additionalProperties"] = False
        for inner in schema["properties"].values():
            _close(inner)
    elif schema.get("type") == "array":
        _close(schema["items"])


def task_turns(v: Values, kind: str, text: str) -> list[Message]:
    """The text, and in most cases what to do with it: before, behind or in a system turn."""
    language = "en" if v.chance(0.3) else v.language
    task = phrase(v, "layout/task", language, k=kind_name(v, kind, language))
    draw = v.rng.random()
    if draw < 0.5:
        return [Message.of("system", task), Message.of("user", text)]
    if draw < 0.75:
        return [Message.of("user", task + v.pick(["\n", "\n\n", " "]) + text)]
    if draw < 0.85:
        return [Message.of("user", text + "\n\n" + task)]
    return [Message.of("user", text)]


def told_example(v: Values, skill: str = "told") -> Example:
    """Free prose, mails, chats, forms: flat fields, distractors, sometimes null or an inferred value."""
    record = make_record(v, num_absent=v.pick([0, 0, 0, 0, 1]))
    return _extraction(v, record, asked(v, record, nest=False), skill)


def nested_example(v: Values, skill: str = "nested") -> Example:
    """The same with objects in objects, lists of objects and inferred values."""
    record = make_record(v, num_absent=v.pick([0, 0, 0, 1]), rich=True)
    return _extraction(v, record, asked(v, record, nest=True), skill)


def null_example(v: Values, skill: str = "null") -> Example:
    """Several fields, about half of them not in the text."""
    record = make_record(v, num_absent=v.pick([1, 2, 2, 3]))
    return _extraction(v, record, asked(v, record, nest=False), skill)


def _extraction(v: Values, record: Record, nodes: Sequence[Node], skill: str) -> Example:
    answer = as_object("", nodes)
    messages = (*task_turns(v, record.kind, record.text), Message.of("assistant", answer.json))
    return Example(
        skill=skill,
        language=v.language,
        messages=messages,
        response_format=json_format(v, record.kind, answer.schema),
    )


_DOING = ("create", "add", "record", "save", "register", "submit", "log", "file", "store", "enter")


def filing_example(v: Values, skill: str = "filing") -> Example:
    """A message to be filed by a tool with nested, optional, enumerated and typed arguments."""
    record = make_record(v, rich=v.chance(0.7))
    nodes = asked(v, record, nest=v.chance(0.7))
    described = "en" if v.language == "en" or v.chance(0.3) else v.language
    optional = [node.name for node in nodes if len(nodes) > 1 and v.chance(0.2)]
    unsaid = _unsaid(v, record, described, {node.name for node in nodes}) if v.chance(0.35) else {}
    inside = as_object("", nodes)
    properties = {**inside.schema["properties"], **unsaid}
    names = list(properties)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": [name for name in names if name not in unsaid and name not in optional],
    }
    title = kind_name(v, record.kind, described)
    tool = Tool(
        name=f"{v.pick(_DOING)}_{record.kind}",
        description=v.pick([phrase(v, "layout/create", described, k=title).rstrip(":："), "", title]),
        parameters=schema,
    )
    beside = [ask_of(entry).tool for entry in distinct(v, v.pick([1, 1, 2, 3]))]
    tools = [tool, *(other for other in beside if other.name != tool.name)]
    v.rng.shuffle(tools)
    order = phrase(v, "layout/create", k=kind_name(v, record.kind))
    text = order + v.pick(["\n", "\n\n", "" if v.language == "zh" else " "]) + record.text
    turns = (*system_turn(v, 0.15), Message.of("user", text), call_message(tool.name, inside.json))
    return Example(skill=skill, language=v.language, messages=turns, tools=tuple(tools))


def _unsaid(v: Values, record: Record, described: str, taken: set[str]) -> dict[str, Any]:
    """Optional parameters that the message says nothing of."""
    free = [role for role in kind_roles(record.kind) if role not in record.roles]
    fields = make_fields(v, v.rng.sample(free, k=min(len(free), v.pick([1, 1, 2]))), described)
    return {made.name: made.schema for made in fields if made.name not in taken}
