"""Public sets of whole conversations: several turns with calls and their results, texts with questions.

As everywhere in the public sets an argument is kept only where it stands word for word in what was said before, so
that copying is always right.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from smelt.core.messages import Message, ResponseFormat, Tool
from smelt.data.example import Example, call_message, compact_json
from smelt.data.source import Record, object_of, ordered, shuffled

MAX_CHARS = 1600  # of a conversation or a passage: what a small model reads in a few hundred tokens


def _cut(rng: random.Random, turns: list[Message]) -> list[Message]:
    """The turns up to one of the assistant's, near the end rather than near the beginning, and not too long."""
    size, ends = 0, []
    for i, turn in enumerate(turns):
        size += len(turn.text) + sum(len(call.arguments) + 20 for call in turn.tool_calls)
        if size > MAX_CHARS:
            break
        if turn.role == "assistant":
            ends.append(i)
    calls = [i for i in ends if turns[i].tool_calls]
    return turns[: rng.choice([*ends[-2:], *calls[-2:]]) + 1] if ends else []


def sgd_dialogues(records: list[Record], rng: random.Random) -> Iterator[Example]:
    """Schema-Guided Dialogue by the conversation: what is missing is asked for, then come the call and its result."""
    intents: dict[str, dict[str, Record]] = {}
    for record in records:
        if "service_name" in record:
            about = {slot["name"]: slot["description"] for slot in record["slots"]}
            by_name = {intent["name"]: {**intent, "about": about} for intent in record["intents"]}
            intents[record["service_name"]] = by_name
    for record in records:
        if "turns" not in record:
            continue
        tools, turns = _sgd_turns(rng, record, intents)
        kept = _cut(rng, turns)
        if tools and any(turn.tool_calls for turn in kept):
            yield Example(skill="sgd_dialogue", language="en", messages=tuple(kept), tools=tuple(tools))


def _sgd_turns(
    rng: random.Random, record: Record, intents: dict[str, dict[str, Record]]
) -> tuple[list[Tool], list[Message]]:
    offered = [(name, intent) for service in record["services"] for name, intent in intents.get(service, {}).items()]
    tools = {name: _sgd_tool(rng, name, intent) for name, intent in shuffled(rng, offered)}
    defaults = {name: intent["optional_slots"] for name, intent in offered}
    turns: list[Message] = []
    said = ""
    for turn in record["turns"]:
        text = turn["utterance"]
        if turn["speaker"] == "USER":
            turns.append(Message.of("user", text))
        else:
            for frame in turn["frames"]:
                call = frame.get("service_call")
                if call is None:
                    continue
                tool = tools.get(call["method"])
                made = _sgd_call(tool, call, said, defaults[call["method"]]) if tool else None
                if made is None:  # an argument that nobody said, or a tool we do not have: the conversation ends before
                    return list(tools.values()), turns
                turns += [made, Message.of("tool", _results(frame), tool_call_id="call_0")]
            turns.append(Message.of("assistant", text))
        said += " " + text.lower()
    return list(tools.values()), turns


def _sgd_tool(rng: random.Random, name: str, intent: Record) -> Tool:
    required = list(intent["required_slots"])
    names = [*required, *(slot for slot in intent["optional_slots"] if slot not in required)]
    described = rng.random() < 0.3
    about = intent["about"]
    properties: dict[str, Any] = {slot: {"type": "string"} for slot in shuffled(rng, names)}
    if described:
        properties = {slot: {"type": "string", "description": about.get(slot, slot)} for slot in properties}
    schema = {"type": "object", "properties": properties, "required": required}
    return Tool(name=name, description=intent["description"] if rng.random() < 0.7 else "", parameters=schema)


def _sgd_call(tool: Tool, call: Record, said: str, defaults: Record) -> Message | None:
    """The call with the arguments that were said, without those left at their default; None where another was not."""
    schema = dict(tool.parameters)
    values = {name: value for name, value in call["parameters"].items() if value.lower() in said}
    left = {name: value for name, value in call["parameters"].items() if name not in values}
    if any(defaults.get(name) != value for name, value in left.items()):
        return None
    if not set(schema["required"]) <= set(values) <= set(schema["properties"]):
        return None
    return call_message(tool.name, compact_json(ordered(schema, values)))


def _results(frame: Record) -> str:
    """The first result, with at most five of its fields; what was told of it first."""
    rows = frame.get("service_results") or []
    if not rows:
        return "[]"
    told = [action["slot"] for action in frame["actions"] if action.get("slot") in rows[0]]
    names = list(dict.fromkeys([*told, *rows[0]]))[:5]
    return compact_json({name: rows[0][name] for name in names})


_MENU_TOOLS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...], tuple[str, ...]]] = {
    # name: other names, description, required and optional parameters
    "show_menu": (("show_menu", "list_menu"), "Show the menu", (), ()),
    "get_menu_items": (("get_menu_items", "search_menu", "find_items"), "Find items on the menu", ("query",), ()),
    "get_addons": (("get_addons", "find_options"), "Find options of an item", ("query",), ("menu_item_id", "scope")),
    "add_order_item": (("add_order_item", "add_item"), "Add an item to the order", ("menu_item_id", "quantity"), ()),
    "get_order_details": (("get_order_details", "show_order"), "Show the order", ("order_id",), ()),
    "finish_order": (("finish_order", "submit_order", "place_order"), "Send the order", ("order_id",), ()),
}


def taskmaster(records: list[Record], rng: random.Random) -> Iterator[Example]:
    """Taskmaster-4: coffee orders where each call takes what the call before it returned."""
    for record in records:
        names = {name: rng.choice(spec[0]) for name, spec in _MENU_TOOLS.items()}
        turns = _order_turns(record, names)
        kept = _cut(rng, turns)
        if any(turn.tool_calls for turn in kept):
            tools = [_menu_tool(rng, name, names[name]) for name in shuffled(rng, list(_MENU_TOOLS))]
            yield Example(skill="taskmaster4", language="en", messages=tuple(kept), tools=tuple(tools))


def _menu_tool(rng: random.Random, key: str, name: str) -> Tool:
    _, description, required, optional = _MENU_TOOLS[key]
    schema = {
        "type": "object",
        "properties": {field: {"type": "string"} for field in (*required, *optional)},
        "required": list(required),
    }
    return Tool(name=name, description=description if rng.random() < 0.7 else "", parameters=schema)


def _order_turns(record: Record, names: dict[str, str]) -> list[Message]:
    turns: list[Message] = []
    said = " 1"  # one piece where nobody says how many
    for utterance in record["utterances"]:
        text = utterance["text"].strip()
        if utterance["speaker"] == "assistant":
            turns.append(Message.of("assistant", text))
            said += " " + text.lower()
            continue
        turns.append(Message.of("user", text))
        said += " " + text.lower()
        notes = {(note["name"], note["context"]): note["value"] for note in utterance["annotations"]}
        for (kind, context), name in notes.items():
            if kind != "api_call":
                continue
            request, response = (
                notes.get(("request", context)),
                notes.get(("response", context.replace("call", "response"))),
            )
            made = _order_call(name, names, request, said) if request and response else None
            if made is None or response is None:
                return turns[:-1] if turns[-1].role == "user" else turns
            turns += [made, Message.of("tool", response, tool_call_id="call_0")]
            said += " " + response.lower()
    return turns


def _order_call(name: str, names: dict[str, str], request: str, said: str) -> Message | None:
    """The call as recorded; None where it holds what nobody said, or what our tools have no parameter for."""
    if name not in _MENU_TOOLS:
        return None
    _, _, required, optional = _MENU_TOOLS[name]
    try:
        values = {name: value.strip() for name, value in json.loads(request).items()}
    except (ValueError, AttributeError):  # no JSON, or a value that is no text
        return None
    known = set(required) | set(optional)
    if not set(required) <= set(values) <= known:
        return None
    if not all(value.lower() in said or value == "order" for value in values.values()):
        return None
    schema = {"properties": dict.fromkeys((*required, *optional))}
    return call_message(names[name], compact_json(ordered(schema, values)))


_READING = ("adversarial_qa_", "quoref_", "duorc_", "ropes_", "quartz_")
_NO_READING = (
    "generate_question",
    "Guess_Title",
    "title_generation",
    "decide_worth_it",
    "movie_director",
    "no_background",
)


def t0_reading(records: list[Record], rng: random.Random) -> Iterator[Example]:
    """T0's open subset: questions on a passage whose answer stands in it, as free text or in a field."""
    for record in records:
        name, prompt = record["_t"], record["prompt"].strip()
        answer = record["completion"].replace("<|endoftext|>", "").strip()
        if not name.startswith(_READING) or any(part in name for part in _NO_READING):
            continue
        if not 0 < len(answer) <= 120 or answer not in prompt or len(prompt) > MAX_CHARS:
            continue
        if rng.random() < 0.75:
            messages = (Message.of("user", prompt), Message.of("assistant", answer))
            yield Example(skill="t0_reading", language="en", messages=messages, phrases=(answer,))
            continue
        schema = object_of(rng, ["answer"], [])
        messages = (Message.of("user", prompt), Message.of("assistant", compact_json({"answer": answer})))
        wanted = ResponseFormat(kind="json_schema", name="answer", schema=schema)
        yield Example(skill="t0_reading", language="en", messages=messages, response_format=wanted)
