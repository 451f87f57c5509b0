"""Customer-service turns: the reply names the order, the product or the address, and the right next step."""

from __future__ import annotations

import functools

from smelt.core.messages import Message, ResponseFormat
from smelt.data.example import Example, compact_json
from smelt.data.tasks.catalog import Block, blocks, roles
from smelt.data.tasks.requests import fill, slots
from smelt.data.tasks.talk import system_turn
from smelt.data.tasks.values import Value, Values

_HELLO = {
    "en": ["Hi, ", "Hello, ", "", "", ""],
    "de": ["Hallo, ", "Guten Tag, ", "", "", ""],
    "zh": ["你好，", "", "", ""],
}
_SIGNED = {"en": "\nRegards, {p}", "de": "\nGruß, {p}", "zh": "\n{p}"}
_ADDRESSED = {"en": "Hello {p}, ", "de": "Guten Tag {p}, ", "zh": "{p}您好，"}
# A second turn that leans on the first: "Please cancel it."
_FOLLOW = {
    "cancel": {
        "en": ["Please cancel it.", "Cancel it please.", "I want to cancel that."],
        "de": ["Bitte stornieren Sie sie.", "Dann stornieren Sie bitte."],
        "zh": ["请取消它。", "那就取消吧。"],
    },
    "refund": {
        "en": ["I want my money back.", "I would like a refund."],
        "de": ["Ich möchte mein Geld zurück.", "Ich hätte gern eine Erstattung."],
        "zh": ["我要退款。", "请退钱。"],
    },
    "invoice_copy": {
        "en": ["I also need the invoice.", "Please send me the invoice for it."],
        "de": ["Ich brauche auch die Rechnung.", "Bitte schicken Sie mir die Rechnung dazu."],
        "zh": ["我还需要发票。", "请把发票发给我。"],
    },
    "return_how": {
        "en": ["How do I send it back?", "I want to return it."],
        "de": ["Wie schicke ich es zurück?", "Ich möchte es zurückgeben."],
        "zh": ["怎么退货？", "我想退货。"],
    },
}


def _intents() -> dict[str, Block]:
    return {block.names[0]: block for block in blocks("service.txt")}


def _message(v: Values, block: Block) -> str:
    said = block.said[v.language]
    return said[-1] if v.split == "test" else v.pick([*said[:-1], *_more()[block.names[0]][v.language]])


@functools.cache
def _more() -> dict[str, dict[str, list[str]]]:
    """Further messages for training, by intent and language."""
    return {block.names[0]: block.said for block in blocks("service_more.txt")}


def _turn(v: Values, block: Block, known: dict[str, Value]) -> tuple[str, str, list[str]]:
    """Customer's text, reply, and the values the reply must hold."""
    message, reply = _message(v, block), block.replies[v.language]
    if missing := set(slots(reply)) - set(slots(message)) - set(known):  # the reply cannot know what nobody said
        message = next(text for text in block.said[v.language] if missing <= set(slots(text)))
    for role in dict.fromkeys([*slots(message), *slots(reply)]):  # a set's order would differ between processes
        if role not in known:
            known[role] = v.draw(roles()[role].kind)
    needed = [known[role].text for role in slots(reply)]
    return v.surrounded(fill(v.varied(message), known)), fill(reply, known), needed


def service_example(v: Values, skill: str = "service") -> Example:
    """One or two turns of a customer and the reply."""
    intents = _intents()
    name = v.pick(list(intents))
    known: dict[str, Value] = {}
    said, reply, needed = _turn(v, intents[name], known)
    said = v.pick(_HELLO[v.language]) + said
    if v.chance(0.25):
        person = v.draw("person").text
        said += _SIGNED[v.language].format(p=person)
        opening = _ADDRESSED[v.language].format(p=person)
        reply = opening + (reply[0].lower() + reply[1:] if v.language == "en" and not reply.startswith("I ") else reply)
        needed.append(person)
    turns = [*system_turn(v, 0.4), Message.of("user", said), Message.of("assistant", reply)]
    if "order" in known and v.split == "train" and v.chance(0.3):
        name = v.pick(list(_FOLLOW))
        said, reply = v.pick(_FOLLOW[name][v.language]), fill(intents[name].replies[v.language], known)
        turns += [Message.of("user", said), Message.of("assistant", reply)]
        needed = [known["order"].text]
    phrases = (intents[name].keys[v.language], *needed)
    return Example(skill=skill, language=v.language, messages=tuple(turns), phrases=phrases)


def classify_example(v: Values, skill: str = "classify") -> Example:
    """A customer's message, and the one of several labels that it is, as JSON."""
    intents = _intents()
    names = v.rng.sample(list(intents), k=v.rng.randint(2, 5))
    name = v.pick(names)
    said, _, _ = _turn(v, intents[name], {})
    key = v.pick(["intent", "category", "label", "topic", "type"])
    schema = {"type": "object", "properties": {key: {"type": "string", "enum": names}}, "required": [key]}
    turns = [*system_turn(v, 0.2), Message.of("user", said), Message.of("assistant", compact_json({key: name}))]
    return Example(
        skill=skill,
        language=v.language,
        messages=tuple(turns),
        response_format=ResponseFormat(kind="json_schema", name=v.pick(["result", "answer", key]), schema=schema),
    )


def customer_message(v: Values) -> tuple[str, str, list[str]]:
    """An intent, a message of that intent, and a few intents to choose from."""
    intents = _intents()
    names = v.rng.sample(list(intents), k=v.rng.randint(2, 5))
    name = v.pick(names)
    return name, _turn(v, intents[name], {})[0], names
