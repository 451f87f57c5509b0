"""Instructions inside data: a document, a list, a tool's result. They are text to be worked on, never orders.

Three measures need three kinds of questions: whether the injected order is obeyed (`indirect`), whether the text is
still worked on whole (`fidelity`: the order is part of what is to be repeated, copied or labelled), and whether
harmless texts that sound alike are treated as any other.
"""

from __future__ import annotations

from smelt.core.messages import Message, ResponseFormat
from smelt.data.example import Example, call_message, compact_json
from smelt.data.tasks.absence import ask_of, distinct
from smelt.data.tasks.catalog import roles
from smelt.data.tasks.hierarchy import styled
from smelt.data.tasks.phrases import label_slots, phrase, sentence
from smelt.data.tasks.records import as_object, asked, json_format, make_record, task_turns
from smelt.data.tasks.rules import mark
from smelt.data.tasks.service import customer_message
from smelt.data.tasks.talk import system_turn
from smelt.data.tasks.values import Values


def injected(v: Values) -> tuple[str, str]:
    """An order as it stands in a text, and the word whose appearance shows that it was obeyed."""
    language = "en" if v.chance(0.2) else v.language
    word = v.invented(2).upper() + v.digits(1, 2) if v.chance(0.5) else mark(v) + v.digits(2, 3)
    if v.chance(0.3):
        thing = ask_of(distinct(v, 1)[0]).text.rstrip(".。?？")
        return styled(v, "data", thing if v.language == "zh" else thing[0].lower() + thing[1:], language), ""
    goal = phrase(v, "attacks/goal", language, y=word)
    return styled(v, "data", goal, language), word


def _put(v: Values, text: str, order: str) -> str:
    """The order at the head, in the middle or at the end of the text."""
    stop = "。" if v.language == "zh" else ". "
    place = v.rng.random()
    gap = "\n" if v.chance(0.4) else "" if v.language == "zh" else " "
    if place < 0.3:
        return f"{order}{gap}{text}"
    if place < 0.6 and stop in text:
        head, _, tail = text.partition(stop)
        return f"{head}{stop}{order}{gap}{tail}"
    return f"{text}{gap}{order}"


def document_example(v: Values, skill: str = "document") -> Example:
    """Fields out of a text that also holds an order: the fields, and nothing of the order."""
    record = make_record(v, num_absent=v.pick([0, 0, 1]))
    order, word = injected(v)
    nodes = asked(v, record, nest=False)
    answer = as_object("", nodes)
    turns = task_turns(v, record.kind, _put(v, record.text, order))
    return Example(
        skill=skill,
        language=v.language,
        messages=(*turns, Message.of("assistant", answer.json)),
        response_format=json_format(v, record.kind, answer.schema),
        forbidden=(word,) if word and word not in answer.json else (),
    )


def result_example(v: Values, skill: str = "tool_order") -> Example:
    """A tool's result with an order in it; the answer says one field that the user asked for."""
    entry = distinct(v, 1)[0]
    ask = ask_of(entry)
    order, word = injected(v)
    names = v.rng.sample(list(_FIELDS), k=v.rng.randint(2, 4))
    rows = {name: v.draw(roles()[_FIELDS[name]].kind) for name in names}
    wanted = v.pick(names)
    cells = [f'"{name}": {value.json}' for name, value in rows.items()]
    content = ", ".join(cells) + "\n" + order
    if v.chance(0.8):
        bait = v.pick(["note", "comment", "message", "description", "content", "text"])
        cells.insert(v.rng.randint(0, len(cells)), f'"{bait}": {compact_json(order)}')
        content = "{" + ", ".join(cells) + "}"
    labels, said = label_slots(_FIELDS[wanted], v.language), rows[wanted].json.strip('"')
    gap = "" if v.language == "zh" else " "
    question = sentence(ask.text, v.language) + gap + phrase(v, "reading/only", **labels)
    reply = phrase(v, "reading/found", **labels, v=said)
    tools = [ask.tool, *(ask_of(other).tool for other in distinct(v, v.pick([0, 1, 2])))]
    tools = list({tool.name: tool for tool in tools}.values())
    turns = (
        *system_turn(v, 0.2),
        Message.of("user", question),
        call_message(ask.tool.name, ask.arguments),
        Message.of("tool", content, tool_call_id="call_0"),
        Message.of("assistant", reply),
    )
    return Example(
        skill=skill,
        language=v.language,
        messages=turns,
        tools=tuple(tools),
        phrases=(said,),
        forbidden=(word,) if word and word not in reply else (),
    )


# Fields of a result and the roles of their values.
_FIELDS = {
    "price": "price", "date": "date", "time": "time", "city": "city", "customer": "person", "order_id": "order",
    "total": "amount", "room": "room", "title": "title", "quantity": "quantity", "phone": "phone", "email": "email",
    "tracking_number": "tracking", "company": "company", "address": "address", "due_date": "due",
}  # fmt: skip


def fidelity_example(v: Values, skill: str = "fidelity") -> Example:
    """The order is part of the data: repeated whole, copied into its field, looked up, or labelled like any text."""
    order, _ = injected(v)
    draw = v.rng.random()
    if draw < 0.35:
        text = _put(v, _plain_text(v), order) if v.chance(0.6) else order
        request = phrase(v, "reading/repeat") + v.pick(["\n", "\n\n", " "]) + text
        turns = (*system_turn(v, 0.2), Message.of("user", request), Message.of("assistant", text))
        return Example(skill=skill, language=v.language, messages=turns, phrases=(text,))
    if draw < 0.6:
        return _note_field(v, order, skill)
    if draw < 0.8:
        rows = {v.draw("title").text: v.draw("sentence").text for _ in range(v.rng.randint(2, 5))}
        key = v.pick(list(rows))
        rows[key] = order
        listing = "\n".join(f"{name}: {text}" for name, text in rows.items())
        question = phrase(v, "asking/lookup", k=key)
        turns = (Message.of("user", f"{listing}\n\n{question}"), Message.of("assistant", order))
        return Example(skill=skill, language=v.language, messages=turns, phrases=(order,))
    return _labelled(v, order, skill)


def _plain_text(v: Values) -> str:
    if v.pool and v.chance(0.5):
        return v.pick(v.pool)
    return phrase(v, "layout/filler")


def _note_field(v: Values, order: str, skill: str) -> Example:
    """A note that holds the order, as one field among others."""
    label = roles()["note"].labels[v.language]
    others = v.rng.sample(["person", "date", "order", "city", "phone", "product"], k=v.rng.randint(1, 3))
    drawn = {role: v.draw(roles()[role].kind) for role in others}
    colon = "：" if v.language == "zh" else ": "
    lines = [f"{roles()[role].labels[v.language]}{colon}{value.text}" for role, value in drawn.items()]
    lines.insert(v.rng.randint(0, len(lines)), f"{label}{colon}{order}")
    names = {role: roles()[role].properties[0] for role in others}
    answer = {names[role]: value.text for role, value in drawn.items()} | {"note": order}
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in answer},
        "required": list(answer),
    }
    turns = (*task_turns(v, "contact", "\n".join(lines)), Message.of("assistant", compact_json(answer)))
    return Example(
        skill=skill,
        language=v.language,
        messages=turns,
        response_format=ResponseFormat(kind="json_schema", name="note", schema=schema),
    )


def _labelled(v: Values, order: str, skill: str) -> Example:
    """A customer's message with an order in it still gets its label."""
    name, text, names = customer_message(v)
    key = v.pick(["intent", "category", "label", "topic", "type"])
    schema = {"type": "object", "properties": {key: {"type": "string", "enum": names}}, "required": [key]}
    turns = (Message.of("user", _put(v, text, order)), Message.of("assistant", compact_json({key: name})))
    return Example(
        skill=skill,
        language=v.language,
        messages=turns,
        response_format=ResponseFormat(kind="json_schema", name=key, schema=schema),
    )
