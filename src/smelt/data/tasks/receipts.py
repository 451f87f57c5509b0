"""Receipts, bills and order confirmations: lines as objects, sums that look alike, and what is not on the paper."""

from __future__ import annotations

from smelt.core.messages import Message
from smelt.data.example import Example, compact_json
from smelt.data.tasks.phrases import phrase
from smelt.data.tasks.records import Node, as_object, json_format, task_turns
from smelt.data.tasks.typed import full_date
from smelt.data.tasks.values import Values

_NAMES = {
    "company": ("vendor", "shop", "company", "store", "merchant", "seller"),
    "address": ("address", "store_address", "location"),
    "date": ("date", "purchase_date", "day"),
    "time": ("time", "at", "purchase_time"),
    "number": ("receipt_number", "invoice_number", "number", "reference"),
    "cashier": ("cashier", "clerk", "served_by"),
    "subtotal": ("subtotal", "net", "goods_total"),
    "tax": ("tax", "vat", "tax_amount"),
    "total": ("total", "sum", "amount_due", "grand_total"),
    "paid": ("paid", "cash_given", "received"),
    "change": ("change", "returned", "change_due"),
}
_LINE_NAMES = (
    ("name", "quantity", "price"), ("product", "qty", "price"), ("item", "count", "amount"),
    ("description", "quantity", "unit_price"), ("article", "units", "price"),
)  # fmt: skip
_MONEY = ("subtotal", "tax", "total", "paid", "change")


def receipt_example(v: Values, skill: str = "receipt") -> Example:
    """A receipt as text; the answer holds some of its fields, the lines among them, null where one is missing."""
    facts, nodes, order = _facts(v)
    lines, items = _lines(v)
    text = _paper(v, facts, lines)
    keys = [key for key in order if key in facts]
    kept = [nodes[key] for key in v.rng.sample(keys, k=v.rng.randint(1, min(6, len(keys))))]
    if v.chance(0.75):
        kept.append(items)
    absent = [key for key in _NAMES if key not in facts]
    if absent and v.chance(0.25):
        missing = v.pick(absent)
        kind = "number" if missing in _MONEY else "string"
        kept.append(Node(v.pick(_NAMES[missing]), {"type": [kind, "null"]}, "null"))
    kept = list({node.name: node for node in kept}.values())
    v.rng.shuffle(kept)
    answer = as_object("", kept)
    return Example(
        skill=skill,
        language=v.language,
        messages=(*task_turns(v, "invoice" if v.chance(0.5) else "order", text), Message.of("assistant", answer.json)),
        response_format=json_format(v, v.pick(["receipt", "invoice", "order"]), answer.schema),
    )


def _facts(v: Values) -> tuple[dict[str, str], dict[str, Node], list[str]]:
    """What the paper says by key, the property for each, and the keys in order. Some keys are left off."""
    facts: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    v.wild = 0.1
    for key, kind in (("company", "company"), ("address", "address"), ("time", "time"), ("number", "code"),
                      ("cashier", "first")):  # fmt: skip
        value = v.draw(kind)
        facts[key] = value.text
        nodes[key] = Node(v.pick(_NAMES[key]), {"type": "string"}, value.json)
    day, month, year = v.rng.randint(1, 28), v.rng.randint(1, 12), v.rng.randint(2019, 2031)
    facts["date"] = full_date(v, day, month, year)
    iso = v.chance(0.5)
    schema = {"type": "string", "format": "date"} if iso else {"type": "string"}
    written = f"{year}-{month:02d}-{day:02d}" if iso else facts["date"]
    nodes["date"] = Node(v.pick(_NAMES["date"]), schema, compact_json(written))
    for key in _MONEY:
        value = v.draw("money")
        facts[key] = value.text
        nodes[key] = Node(v.pick(_NAMES[key]), {"type": "number"}, value.json)
    for key in v.rng.sample(list(facts), k=v.rng.randint(1, 6)):
        if key not in ("total", "company"):
            del facts[key]
    return facts, nodes, list(_NAMES)


def _lines(v: Values) -> tuple[list[str], Node]:
    rows = [(v.draw("product"), v.draw("quantity_plain"), v.draw("money")) for _ in range(v.rng.randint(1, 5))]
    names = v.pick(_LINE_NAMES)
    shape = phrase(v, "receipts/line", p="\0p", q="\0q", m="\0m")
    said = [shape.replace("\0p", p.text).replace("\0q", q.text).replace("\0m", m.text) for p, q, m in rows]
    inner = {names[0]: {"type": "string"}, names[1]: {"type": "integer"}, names[2]: {"type": "number"}}
    keys = list(names)
    v.rng.shuffle(keys)
    schema = {"type": "object", "properties": {key: inner[key] for key in keys}, "required": keys}
    objects = []
    for row in rows:
        by_name = {name: value.json for name, value in zip(names, row, strict=True)}
        objects.append("{" + ",".join(f'"{key}":{by_name[key]}' for key in keys) + "}")
    name = v.pick(["items", "lines", "products", "positions", "articles"])
    return said, Node(name, {"type": "array", "items": schema}, "[" + ",".join(objects) + "]")


def _paper(v: Values, facts: dict[str, str], lines: list[str]) -> str:
    colon = "：" if v.language == "zh" and v.chance(0.6) else v.pick([": ", " ", "  ", ":"])
    sign = v.pick(["", "", {"en": " $", "de": " €", "zh": " 元"}[v.language], " EUR" if v.language == "de" else ""])
    top = [facts[key] for key in ("company", "address") if key in facts]
    heading = phrase(v, "receipts/top")
    if heading != "-":
        top.insert(v.rng.randint(0, len(top)), heading)
    head = [facts[key] for key in ("date", "time") if key in facts]
    middle = [" ".join(head)] if head and v.chance(0.5) else head
    labelled = [key for key in ("number", "cashier") if key in facts]
    middle += [phrase(v, f"receipts/{key}") + colon + facts[key] for key in labelled]
    v.rng.shuffle(middle)
    sums = [phrase(v, f"receipts/{key}") + colon + facts[key] + sign for key in _MONEY if key in facts]
    end = [phrase(v, "receipts/bottom")] if v.chance(0.4) else []
    if v.chance(0.25):
        middle, end = [], [*end, *middle]
    rule = [v.pick(["-" * 16, "=" * 20, "* * *", ""])] if v.chance(0.4) else []
    return "\n".join([*top, *middle, *rule, *lines, *rule, *sums, *end])
