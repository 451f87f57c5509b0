"""Fields out of a short text into a given schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smelt.core.messages import Message, ResponseFormat
from smelt.data.example import Example, compact_json
from smelt.data.tasks.catalog import Block, blocks, roles
from smelt.data.tasks.requests import fill, slots
from smelt.data.tasks.schemas import Field, arguments_json, make_fields, object_schema
from smelt.data.tasks.values import Value, Values

_INSTRUCTION = {
    "en": ["Extract the fields from the text.", "Extract the data as JSON.", "Read the text and fill in the fields.",
           "Return the {k} data.", "Extract the {k}."],
    "de": ["Extrahiere die Felder aus dem Text.", "Gib die Daten als JSON aus.", "Lies den Text und fülle die Felder.",
           "Gib die Daten der {k} aus.", "Extrahiere: {k}."],
    "zh": ["从文本中提取字段。", "以JSON格式提取数据。", "阅读文本并填写字段。", "提取{k}信息。", "提取{k}。"],
}  # fmt: skip
_FREE_ROLES = (
    "person company city date time amount order email phone address product quantity price code due country position "
    "invoice tracking flight title room currency customer age weight zip url account"
).split()


def _fields(v: Values, mentioned: Sequence[str], described: str) -> list[Field]:
    names = list(dict.fromkeys(mentioned))
    if len(names) > 2 and v.chance(0.3):
        names = v.rng.sample(names, k=v.rng.randint(1, len(names)))
    elif v.chance(0.4):
        v.rng.shuffle(names)
    return make_fields(v, names, described)


def _record(v: Values) -> Block:
    return v.pick(blocks("extract_test.txt" if v.split == "test" and v.chance(0.5) else "extract_train.txt"))


def _templates(v: Values, block: Block) -> list[str]:
    said = block.said[v.language]
    if len(said) == 2:  # a held-out record
        return said
    return said[-1:] if v.split == "test" else said[:-1]


def _absent(v: Values, block: Block, used: Sequence[Field], described: str) -> list[Field]:
    """Sometimes one more field that the text does not give; its answer is null."""
    have = {field.role for field in used} | {"count"}
    options = [role.rstrip("~") for role in block.roles if role.rstrip("~") not in have] or ["country", "age"]
    field = make_fields(v, [v.pick(options)], described)[0]
    if field.name in {other.name for other in used} or "enum" in field.schema or field.schema["type"] == "array":
        return []
    schema = {**field.schema, "type": [field.schema["type"], "null"]}
    return [Field(role=field.role, name=field.name, schema=schema)]


def _format(v: Values, kind: str, fields: Sequence[Field]) -> ResponseFormat:
    schema: dict[str, Any] = object_schema(v, fields)
    name = v.pick([kind, kind.capitalize(), "answer", "result", "record", "data", "extraction"])
    if strict := v.chance(0.5):
        schema["additionalProperties"] = False  # OpenAI's strict mode asks for it
    return ResponseFormat(kind="json_schema", name=name, schema=schema, strict=strict)


def _prompt(v: Values, kind: str, text: str) -> list[Message]:
    language = "en" if v.chance(0.35) else v.language
    instruction = v.pick(_INSTRUCTION[language]).format(k=kind)
    draw = v.rng.random()
    if draw < 0.5:
        return [Message.of("system", instruction), Message.of("user", text)]
    if draw < 0.75:
        return [Message.of("user", instruction + v.pick(["\n", "\n\n", " "]) + text)]
    return [Message.of("user", text)]


def extract_example(v: Values, skill: str = "extract") -> Example:
    """A text of a known kind of record, and its fields; sometimes a second text with the same schema."""
    block = _record(v)
    described = "en" if v.language == "en" or v.chance(0.4) else v.language
    template = v.pick(_templates(v, block))
    fields = _fields(v, slots(template), described)
    shared = [text for text in _templates(v, block) if {f.role for f in fields} <= set(slots(text))]
    absent = _absent(v, block, fields, described) if v.chance(0.12) else []
    ordered = [*fields, *absent]
    kind = {"en": block.names[0], **{lang: block.texts[lang][0] for lang in ("de", "zh")}}[v.language]
    turns: list[Message] = []
    for i in range(1 if v.split == "test" else v.pick([1, 1, 2, 3])):
        template = template if i == 0 else v.pick(shared)
        missing = {field.role for field in absent} & set(slots(template))
        if missing:
            break
        drawn = {role: v.draw(roles()[role].kind, None) for role in slots(template)}
        for field in fields:
            drawn[field.role] = field.draw(v)
        pairs = [(f, drawn[f.role]) if f in fields else (f, Value("", "null")) for f in ordered]
        text = v.surrounded(fill(v.varied(template), drawn))
        turns += _prompt(v, kind, text) if i == 0 else [Message.of("user", text)]
        turns.append(Message.of("assistant", arguments_json(pairs)))
    if not turns:
        return extract_example(v, skill)
    return Example(
        skill=skill,
        language=v.language,
        messages=tuple(turns),
        response_format=_format(v, block.names[0], ordered),
    )


def free_example(v: Values, skill: str = "extract") -> Example:
    """Labelled lines or a loose sentence over random fields: labels and names tell what is what."""
    described = "en" if v.language == "en" or v.chance(0.3) else v.language
    names = v.rng.sample(_FREE_ROLES, k=v.rng.randint(3, 7))
    fields = make_fields(v, names, described)
    pairs = [(field, field.draw(v)) for field in fields]
    colon = "：" if v.language == "zh" else v.pick([": ", ": ", " - ", " = ", " "])
    lines = [
        (field.name if v.chance(0.15) else _capital(roles()[field.role].labels[v.language])) + colon + value.text
        for field, value in pairs
    ]
    v.rng.shuffle(lines)
    joint = "，" if v.language == "zh" and v.chance(0.5) else v.pick(["\n", "\n", ", ", "; "])
    kept = pairs if v.chance(0.5) else v.rng.sample(pairs, k=v.rng.randint(1, len(pairs)))
    turns = [*_prompt(v, "record", joint.join(lines)), Message.of("assistant", arguments_json(kept))]
    return Example(
        skill=skill,
        language=v.language,
        messages=tuple(turns),
        response_format=_format(v, "record", [field for field, _ in kept]),
    )


def _capital(label: str) -> str:
    return label[0].upper() + label[1:]


def basket_example(v: Values, skill: str = "extract") -> Example:
    """A receipt with lines; the answer lists them as objects."""
    rows = [(v.draw("product"), v.draw("quantity_plain"), v.draw("money")) for _ in range(v.rng.randint(1, 4))]
    total = v.draw("money")
    company = v.draw("company")
    said = {"en": "Total", "de": "Summe", "zh": "合计"}[v.language]
    shape = v.pick(["{q} x {p} {m}", "{p}  {q}  {m}", "{q} {p} @ {m}"])
    lines = [shape.format(q=q.text, p=p.text, m=m.text) for p, q, m in rows]
    text = "\n".join([company.text, *lines, f"{said} {total.text}"])
    keys = v.pick([("name", "quantity", "price"), ("product", "qty", "price"), ("item", "count", "amount")])
    vendor, all_, sum_ = v.pick(
        [("vendor", "items", "total"), ("shop", "lines", "sum"), ("company", "products", "total")]
    )
    item_schema = {
        "type": "object",
        "properties": {keys[0]: {"type": "string"}, keys[1]: {"type": "integer"}, keys[2]: {"type": "number"}},
        "required": list(keys),
    }
    schema = {
        "type": "object",
        "properties": {
            vendor: {"type": "string"},
            all_: {"type": "array", "items": item_schema},
            sum_: {"type": "number"},
        },
        "required": [vendor, all_, sum_],
    }
    items = ",".join(f'{{"{keys[0]}":{p.json},"{keys[1]}":{q.json},"{keys[2]}":{m.json}}}' for p, q, m in rows)
    answer = f'{{"{vendor}":{compact_json(company.text)},"{all_}":[{items}],"{sum_}":{total.json}}}'
    return Example(
        skill=skill,
        language=v.language,
        messages=(*_prompt(v, "receipt", text), Message.of("assistant", answer)),
        response_format=ResponseFormat(kind="json_schema", name="receipt", schema=schema),
    )
