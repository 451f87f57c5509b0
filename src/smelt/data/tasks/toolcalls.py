"""Conversations about tools: the right call, no call when none fits, the answer from a tool's result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from smelt.core.messages import Message, Tool
from smelt.data.example import Example, call_message, compact_json
from smelt.data.tasks.catalog import Block, blocks
from smelt.data.tasks.requests import (
    Ask,
    catalog_ask,
    code_ask,
    describe,
    invented_ask,
    train_blocks,
    train_templates,
)
from smelt.data.tasks.talk import system_turn, talk_pair
from smelt.data.tasks.things import deed
from smelt.data.tasks.values import Value, Values

NO_TOOL = {
    "en": "I have no tool for that.",
    "de": "Dafür habe ich kein Werkzeug.",
    "zh": "我没有适合的工具。",
}
_FOUND = {"en": "Here is the result: ", "de": "Hier ist das Ergebnis: ", "zh": "结果如下："}
_FAILED = {"en": "That did not work: ", "de": "Das hat nicht geklappt: ", "zh": "操作失败："}
# Tools whose requests another could answer too; they never stand beside each other.
_RIVALS = (
    {"get_weather", "get_forecast"},
    {"find_trains", "get_directions", "search_flights"},
    {"get_order_status", "track_parcel"},
    {"cancel_order", "request_refund"},
    {"search_web", "search_products", "find_restaurant", "get_recipe", "get_weather", "get_stock_price"},
    {"set_reminder", "create_event", "set_alarm", "create_note", "set_timer"},
    {"add_to_cart", "order_drink", "add_items"},
    {"send_email", "send_message"},
)
Asker = Callable[[Values], Ask]


def rivals(key: str) -> set[str]:
    """The keys of tools that could answer a request for the tool `key`, itself among them."""
    return set().union({key}, *(group for group in _RIVALS if key in group))


def train_ask(v: Values) -> Ask:
    """A request of the training distribution."""
    draw = v.rng.random()
    if draw < 0.48:
        block = v.pick(train_blocks())
        return catalog_ask(v, block, train_templates(block, v.language))
    if draw < 0.7:
        return invented_ask(v)
    return deed(v).ask if draw < 0.93 else code_ask(v)


def phrased_ask(v: Values) -> Ask:
    """Held out: a known tool asked for in words never trained on."""
    block = v.pick(train_blocks())
    return catalog_ask(v, block, block.said[v.language][-1:])


def unseen_ask(v: Values) -> Ask:
    """Held out: a tool never trained on, from the catalogue or invented from held-out nouns."""
    if v.chance(0.35):
        return invented_ask(v)
    block = v.pick(blocks("tools_test.txt"))
    return catalog_ask(v, block, block.said[v.language])


def others(v: Values, asks: Sequence[Ask], count: int) -> list[Tool]:
    """`count` tools that do not answer any of `asks`."""
    barred = set().union(*(rivals(ask.key) for ask in asks))
    taken = {ask.tool.name for ask in asks}
    found: list[Tool] = []
    while len(found) < count:
        tool, key = _other(v, asks)
        if key not in barred and tool.name not in taken:
            barred.add(key)
            taken.add(tool.name)
            found.append(tool)
    return found


def _other(v: Values, asks: Sequence[Ask]) -> tuple[Tool, str]:
    if v.chance(0.55):
        block: Block = v.pick(blocks("tools_test.txt") if v.split == "test" and v.chance(0.5) else train_blocks())
        return describe(v, block)[0], block.names[0]
    ask = invented_ask(v)
    return ask.tool, ask.key


def _number_of_tools(v: Values) -> int:
    return v.pick([1, 2, 2, 3, 3, 4, 5])


def call_example(v: Values, asker: Asker = train_ask, skill: str = "call") -> Example:
    """One request, one right call."""
    ask = asker(v)
    tools = [ask.tool, *others(v, [ask], _number_of_tools(v) - 1)]
    v.rng.shuffle(tools)
    messages = (*system_turn(v), Message.of("user", ask.text), call_message(ask.tool.name, ask.arguments))
    return Example(skill=skill, language=v.language, messages=messages, tools=tuple(tools))


def session_example(v: Values) -> Example:
    """Several requests with the same tools, some with results and answers, some that no tool fits."""
    asks = [train_ask(v) for _ in range(v.pick([2, 2, 3]))]
    keys: set[str] = set()
    kept = []
    for ask in asks:
        if not rivals(ask.key) & keys:
            kept.append(ask)
            keys |= rivals(ask.key)
    tools = {ask.tool.name: ask.tool for ask in kept}
    if len(tools) < len(kept):
        return call_example(v)
    extra = others(v, kept, v.pick([0, 1, 2]))
    offered = [*tools.values(), *extra]
    v.rng.shuffle(offered)
    turns: list[Message] = [*system_turn(v)]
    for i, ask in enumerate(kept):
        turns += [Message.of("user", ask.text), call_message(ask.tool.name, ask.arguments, f"call_{i}")]
        if i + 1 < len(kept) or v.chance(0.6):
            turns += result_turns(v, ask, f"call_{i}")[0]
        if v.chance(0.15):
            turns += _refusal(v, kept, offered)
    if turns[-1].role != "assistant":
        raise AssertionError("a session ends with the assistant")
    return Example(skill="session", language=v.language, messages=tuple(turns), tools=tuple(offered))


def _refusal(v: Values, asks: Sequence[Ask], offered: Sequence[Tool]) -> list[Message]:
    names = {tool.name for tool in offered}
    stranger = train_ask(v)
    barred = set().union(*(rivals(ask.key) for ask in asks))
    if stranger.key in barred or stranger.tool.name in names or "search_web" in barred or v.chance(0.3):
        said, reply = talk_pair(v)
        return [Message.of("user", said), Message.of("assistant", reply)]
    return [Message.of("user", stranger.text), Message.of("assistant", NO_TOOL[v.language])]


def no_tool_example(v: Values, asker: Asker = train_ask, skill: str = "no_tool") -> Example:
    """A request that none of the tools fits, or small talk beside tools: the answer is text."""
    count = _number_of_tools(v)
    if v.split == "train" and v.chance(0.35):
        said, reply = talk_pair(v)
        phantom = invented_ask(v)
        tools = others(v, [phantom], count)
        messages = (*system_turn(v), Message.of("user", said), Message.of("assistant", reply))
        return Example(skill=skill, language=v.language, messages=messages, tools=tuple(tools))
    ask = asker(v)
    tools = [tool for tool in others(v, [ask], count + 1) if "search" not in tool.name][:count]
    messages = (*system_turn(v), Message.of("user", ask.text), Message.of("assistant", NO_TOOL[v.language]))
    return Example(skill=skill, language=v.language, messages=messages, tools=tuple(tools))


def result_example(v: Values, asker: Asker = train_ask, skill: str = "result") -> Example:
    """A request, the call, its result: the answer says the result."""
    ask = asker(v)
    tools = [ask.tool, *others(v, [ask], v.pick([0, 1, 2]))]
    v.rng.shuffle(tools)
    answered, phrases = result_turns(v, ask, "call_0")
    turns = [Message.of("user", ask.text), call_message(ask.tool.name, ask.arguments), *answered]
    return Example(
        skill=skill, language=v.language, messages=(*system_turn(v), *turns), tools=tuple(tools), phrases=phrases
    )


def result_turns(v: Values, ask: Ask, call_id: str) -> tuple[list[Message], tuple[str, ...]]:
    """The tool's turn and the assistant's answer that says it; and the phrases the answer must hold."""
    content, reply, phrases = _result(v, ask)
    return [Message.of("tool", content, tool_call_id=call_id), Message.of("assistant", reply)], tuple(phrases)


_RESULT_KINDS = (
    "status:issue temperature:smallint price:money total:money date:date time:time city:city name:person id:code "
    "count:smallint title:title sky:issue order_id:code eta:date balance:money result:number room:room unit:currency"
).split()


def _result(v: Values, ask: Ask) -> tuple[str, str, list[str]]:
    """Content of the tool turn, the answer, and what the answer must say."""
    draw = v.rng.random()
    stop, comma = ("。", "，") if v.language == "zh" else (".", ", ")
    if draw < 0.15:
        text = v.draw(v.pick(["sentence", "title", "number", "money", "product"])).text
        return text, f"{_FOUND[v.language]}{text}{stop}", [text]
    if draw < 0.22:
        reason = v.pick(["not found", "timeout", "no permission", "invalid value", v.draw("sentence").text])
        content = _json_text(v, [("error", Value(reason, compact_json(reason)))])
        return content, f"{_FAILED[v.language]}{reason}{stop}", [reason]
    rows = _result_rows(v, ask)
    said = [f"{name.replace('_', ' ')} {value.text}" for name, value in rows]
    return _json_text(v, rows), f"{_FOUND[v.language]}{comma.join(said)}{stop}", said


def _result_rows(v: Values, ask: Ask) -> list[tuple[str, Value]]:
    rows: list[tuple[str, Value]] = []
    if v.chance(0.4) and ask.pairs:
        field, value = v.pick(ask.pairs)
        if value.json[0] != "[":
            rows.append((field.name, Value(value.json.strip('"'), value.json)))
    for spec in v.rng.sample(_RESULT_KINDS, k=v.pick([1, 1, 2, 2, 3])):
        name, kind = spec.split(":")
        if name not in dict(rows):
            drawn = v.draw(kind)
            rows.append((name, Value(drawn.json.strip('"'), drawn.json)))
    if v.chance(0.3):
        status = v.pick(["ok", "done", "started", "shipped", "sunny", "open", "confirmed", "delivered", "pending"])
        rows.insert(v.rng.randint(0, len(rows)), ("state", Value(status, f'"{status}"')))
    return rows


def _json_text(v: Values, rows: Sequence[tuple[str, Value]]) -> str:
    colon, comma = (": ", ", ") if v.chance(0.6) else (":", ",")
    return "{" + comma.join(f'"{name}"{colon}{value.json}' for name, value in rows) + "}"
