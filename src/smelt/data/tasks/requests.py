"""What a user may ask of a tool: a request in words, the right arguments, and the tool in its many spellings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smelt.core.messages import Tool
from smelt.data.tasks.catalog import Block, blocks, nouns, roles
from smelt.data.tasks.schemas import Field, arguments_json, make_fields, object_schema
from smelt.data.tasks.values import Value, Values, enum_options

_SLOT = re.compile(r"\{(\w+)\}")
# Verb identifiers; how a request and a description say them. {n} is the noun.
_VERBS: Mapping[str, Mapping[str, str]] = {
    "get": {"en": "Show the {n}", "de": "{n} anzeigen", "zh": "显示{n}"},
    "create": {"en": "Create a {n}", "de": "{n} anlegen", "zh": "新建{n}"},
    "delete": {"en": "Delete the {n}", "de": "{n} löschen", "zh": "删除{n}"},
    "update": {"en": "Update the {n}", "de": "{n} aktualisieren", "zh": "更新{n}"},
    "check": {"en": "Check the {n}", "de": "{n} prüfen", "zh": "检查{n}"},
    "reserve": {"en": "Reserve a {n}", "de": "{n} reservieren", "zh": "预订{n}"},
    "start": {"en": "Start the {n}", "de": "{n} starten", "zh": "启动{n}"},
    "stop": {"en": "Stop the {n}", "de": "{n} stoppen", "zh": "停止{n}"},
    "send": {"en": "Send the {n}", "de": "{n} senden", "zh": "发送{n}"},
    "find": {"en": "Find the {n}", "de": "{n} suchen", "zh": "查找{n}"},
    "approve": {"en": "Approve the {n}", "de": "{n} genehmigen", "zh": "批准{n}"},
    "move": {"en": "Move the {n}", "de": "{n} verschieben", "zh": "移动{n}"},
    "extend": {"en": "Extend the {n}", "de": "{n} verlängern", "zh": "延长{n}"},
    "archive": {"en": "Archive the {n}", "de": "{n} archivieren", "zh": "归档{n}"},
}
_INVENTED_ROLES = (
    "code customer date time count person city amount note email phone room percent title product company order"
    " priority file minutes due address country quantity value zip invoice"
).split()
_POLITE = {
    "en": ["{t}", "{t}", "Please {t}", "{t}, please.", "Can you {t}?", "{t}.", "I need you to {t}", "Could you {t}?"],
    "de": ["{t}", "{t}", "Bitte {t}", "{t}, bitte.", "Kannst du {t}?", "{t}.", "Ich möchte {t}", "Können Sie {t}?"],
    "zh": ["{t}", "{t}", "请{t}", "{t}，谢谢", "能{t}吗？", "{t}。", "帮我{t}", "麻烦{t}"],
}
# How a request names a parameter: {l} its label, {v} the value.
_PARAMETER = {
    "en": ["with {l} {v}", "{l} {v}", "{l}: {v}", "for {l} {v}", "with a {l} of {v}", "{l} = {v}", "the {l} is {v}"],
    "de": ["mit {l} {v}", "{l} {v}", "{l}: {v}", "für {l} {v}", "{l} ist {v}", "{l} = {v}", "als {l} {v}"],
    "zh": ["{l}{v}", "{l}：{v}", "{l}为{v}", "{l}是{v}", "{l} {v}"],
}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request: what is said, the tool it is for, the arguments as JSON text, and the fields they fill."""

    text: str
    tool: Tool
    arguments: str
    key: str
    pairs: tuple[tuple[Field, Value], ...] = ()


def describe(v: Values, block: Block) -> tuple[Tool, list[Field]]:
    """A tool of the catalogue in one of its spellings, and its fields."""
    described = "en" if v.language == "en" or v.chance(0.3) else v.language
    fields = make_fields(v, block.roles, described)
    name = spelled(v, v.pick(block.names))
    description = v.pick(block.texts[described]) if v.chance(0.85) else ""
    if description and described == "en" and v.chance(0.3):
        description += "."
    return Tool(name=name, description=description, parameters=object_schema(v, fields)), fields


def spelled(v: Values, name: str) -> str:
    """snake_case, sometimes camelCase or with a prefix."""
    if v.chance(0.12):
        head, *tail = name.split("_")
        return head + "".join(part.capitalize() for part in tail)
    return name + "_tool" if v.chance(0.04) else name


def fill(template: str, values: Mapping[str, Value]) -> str:
    """The template with its slots said."""
    said = ""
    for part in re.split(r"(\{\w+\})", template):
        match = _SLOT.fullmatch(part)
        text = values[match[1]].text if match else part
        if match and said and said[-1].isascii() and said[-1].isalnum() and text[:1].isascii() and text[:1].isalnum():
            said += " "  # Chinese templates set slots side by side: two numbers must not run together
        said += text
    return said


def slots(template: str) -> list[str]:
    """The roles a template mentions."""
    return _SLOT.findall(template)


def catalog_ask(v: Values, block: Block, templates: Sequence[str]) -> Ask:
    """A request for a catalogue tool, said by one of `templates`."""
    template = v.varied(v.pick(templates))
    tool, fields = describe(v, block)
    mentioned = set(slots(template))
    drawn = {field.role: field.draw(v) for field in fields}
    pairs = [(field, drawn[field.role]) for field in fields if field.role in mentioned]
    text = v.surrounded(fill(template, drawn), 0.15)
    if v.language == "en" and v.chance(0.12):
        text = text[0].lower() + text[1:]
    required, pairs = _with_defaults(v, fields, pairs, tool)
    return Ask(text=text, tool=required, arguments=arguments_json(pairs), key=block.names[0], pairs=tuple(pairs))


def _with_defaults(
    v: Values, fields: Sequence[Field], pairs: list[tuple[Field, Value]], tool: Tool
) -> tuple[Tool, list[tuple[Field, Value]]]:
    """Sometimes an optional enumerated field is required though nobody named it: its first option is right."""
    silent = [f for f in fields if f.optional and f.enum_language and all(f is not g for g, _ in pairs)]
    if not silent or not v.chance(0.5):
        return tool, pairs
    field = silent[0]
    options = enum_options(roles()[field.role].kind, field.enum_language or "en") or []
    schema = {**tool.parameters, "required": [*tool.parameters["required"], field.name]}
    changed = Tool(name=tool.name, description=tool.description, parameters=schema)
    return changed, [*pairs, (field, Value(options[0], f'"{options[0]}"'))]


def train_templates(block: Block, language: str) -> list[str]:
    """The ways of saying it that training sees: all but the last."""
    return block.said[language][:-1]


def invented_ask(v: Values) -> Ask:
    """A request for a tool nobody has seen: a verb, a noun (sometimes invented too) and random parameters."""
    verb = v.pick(list(_VERBS))
    identifier, noun = _noun(v)
    described = "en" if v.language == "en" else v.language
    names = v.rng.sample(_INVENTED_ROLES, k=v.pick([1, 1, 2, 2, 3]))
    fields = make_fields(v, names, described)
    tool = Tool(
        name=spelled(v, f"{verb}_{identifier}"),
        description=_VERBS[verb][described].format(n=noun) if v.chance(0.8) else "",
        parameters=object_schema(v, fields),
    )
    pairs = [(field, field.draw(v)) for field in fields]
    task = _VERBS[verb][v.language].format(n=noun)
    return Ask(
        text=_say(v, task, pairs), tool=tool, arguments=arguments_json(pairs), key=f"{verb} {identifier}",
        pairs=tuple(pairs),
    )  # fmt: skip


def _noun(v: Values) -> tuple[str, str]:
    if v.split == "train" and v.chance(0.3):
        invented = v.invented()
        return invented, invented.capitalize() if v.language == "de" else invented
    options = [row for i, row in enumerate(nouns()) if (i % 6 == 2) == (v.split == "test")]
    identifier, said = v.pick(options)
    return identifier, said[v.language]


def _say(v: Values, task: str, pairs: Sequence[tuple[Field, Value]]) -> str:
    order = list(pairs)
    if v.chance(0.3):
        v.rng.shuffle(order)
    parts = []
    for i, (field, value) in enumerate(order):
        label = roles()[field.role].labels[v.language]
        if v.chance(0.25):
            label = field.name
        if i == 0 and v.chance(0.35):
            parts.append(value.text)
        else:
            parts.append(v.pick(_PARAMETER[v.language]).format(l=label, v=value.text))
    joint = {"en": v.pick([", ", " and ", " "]), "de": v.pick([", ", " und ", " "]), "zh": "，"}[v.language]
    gap = v.pick([" ", ": ", ", "]) if v.language != "zh" else v.pick(["，", "：", ""])
    polite = v.pick(_POLITE[v.language])
    if v.language == "en" and not polite.startswith("{t}"):
        task = task[0].lower() + task[1:]
    return polite.format(t=task + gap + joint.join(parts))


def code_ask(v: Values) -> Ask:
    """A request that names the function: `What is the value of foo_bar(7)? Use the tool.`"""
    count = v.pick([0, 1, 1, 2])
    name = "_".join([v.invented(2), v.pick(["function", "tool", "fn", "api", v.invented(2)])])
    if v.chance(0.3):
        name = v.pick(["run", "do", "compute", "lookup", "fetch"]) + "_" + name
    kinds = [v.pick(["number", "smallint", "code", "city", "first", "bigint"]) for _ in range(count)]
    labels = v.rng.sample(["a", "b", "x", "y", "input", "n", "value", "key", "text", "arg", "_input", "name"], k=count)
    fields, pairs = [], []
    for kind, label in zip(kinds, labels, strict=True):
        json_type = {"number": "number", "smallint": "integer", "bigint": "integer"}.get(kind, "string")
        fields.append(Field(role=kind, name=label, schema={"type": json_type}))
        value = v.draw(kind)
        pairs.append((fields[-1], Value(value.text if json_type == "string" else value.json, value.json)))
    inside = ", ".join(p.text for _, p in pairs) if v.chance(0.7) else ", ".join(f"{f.name}={p.text}" for f, p in pairs)
    call = f"{name}({inside})"
    text = v.pick(
        {
            "en": ["What is the value of {c}? Use the tool.", "Call {c}", "Run {c}.", "What does {c} return?", "{c}"],
            "de": ["Was ist der Wert von {c}? Nutze das Werkzeug.", "Rufe {c} auf", "Führe {c} aus.", "{c}"],
            "zh": ["{c}的值是多少？请使用工具。", "调用{c}", "执行{c}", "{c}"],
        }[v.language]
    ).format(c=call)
    description = v.pick(["", "", "Applies a function to its input.", "Returns a value.", f"Runs {name}."])
    tool = Tool(name=name, description=description, parameters=object_schema(v, fields))
    return Ask(text=text, tool=tool, arguments=arguments_json(pairs), key=name, pairs=tuple(pairs))


def train_blocks() -> tuple[Block, ...]:
    """The catalogue tools that training sees."""
    return blocks("tools_train.txt")
