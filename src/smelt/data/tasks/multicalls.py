"""Calls beyond one: several in a turn, one that lacks an argument and asks for it, one that needs another's result."""

from __future__ import annotations

from collections.abc import Sequence

from smelt.core.messages import Message, Tool, ToolCall
from smelt.data.example import Example, call_message
from smelt.data.tasks.absence import ask_of, clash, distinct
from smelt.data.tasks.catalog import roles
from smelt.data.tasks.phrases import label_slots, options, phrase, sentence, woven
from smelt.data.tasks.requests import Ask, describe, fill, slots, spelled, train_blocks, train_templates
from smelt.data.tasks.schemas import Field, arguments_json, make_fields, object_schema
from smelt.data.tasks.talk import system_turn
from smelt.data.tasks.things import PARAMETER_ROLES, Deed, deed, parameter
from smelt.data.tasks.toolcalls import NO_TOOL
from smelt.data.tasks.values import Value, Values

# Roles of which one request may name two or three, each for a call of its own.
_REPEATABLE = frozenset(
    "city order tracking symbol person sku invoice file device flight first account dish query".split()
)
_LETTERS = "abc"


def _calls(asks: Sequence[Ask]) -> Message:
    calls = tuple(ToolCall(id=f"call_{i}", name=a.tool.name, arguments=a.arguments) for i, a in enumerate(asks))
    return Message(role="assistant", tool_calls=calls)


def _finished(v: Values, calls: Message) -> list[Message]:
    """Results of every call and the assistant's word."""
    done = [Message.of("tool", "ok", tool_call_id=call.id) for call in calls.tool_calls]
    return [*done, Message.of("assistant", phrase(v, "asking/done"))]


def parallel_example(v: Values, skill: str = "parallel") -> Example:
    """Two or three independent requests in one message: as many calls, in their order."""
    if v.chance(0.3):
        return _repeated(v, skill)
    count = v.pick([2, 2, 2, 3])
    chosen = distinct(v, count + v.pick([0, 1, 1, 2, 3]), polite=False)
    asks = [ask_of(entry) for entry in chosen[:count]]
    texts = [sentence(ask.text.rstrip(".。"), v.language) for ask in asks]
    frame = v.pick(options(v, f"asking/several.{count}"))
    said = woven(frame, dict(zip(_LETTERS, texts, strict=False)))
    tools = [ask_of(entry).tool for entry in chosen]
    v.rng.shuffle(tools)
    return _turns(v, skill, said, asks, tools)


def _turns(v: Values, skill: str, said: str, asks: Sequence[Ask], tools: Sequence[Tool]) -> Example:
    """The request and its calls; in training sometimes a single request before or after them."""
    calls = _calls(asks)
    turns = [*system_turn(v, 0.15), Message.of("user", said), calls]
    if v.split == "train" and v.chance(0.3):
        again = v.pick(list(asks))
        turns += [*_finished(v, calls), Message.of("user", again.text)]
        turns.append(call_message(again.tool.name, again.arguments))
    return Example(skill=skill, language=v.language, messages=tuple(turns), tools=tuple(tools))


def _repeated(v: Values, skill: str) -> Example:
    """One request over two or three values: the same tool for each."""
    pool = [b for b in train_blocks() if _REPEATABLE & set(slots(b.said[v.language][0]))]
    block = v.pick(pool)
    said = train_templates(block, v.language) if v.split == "train" else block.said[v.language][-1:]
    fitting = [text for text in said if _REPEATABLE & set(slots(text))]
    if not fitting:
        return _repeated(v, skill)
    template = v.pick(fitting)
    role = next(name for name in slots(template) if name in _REPEATABLE)
    tool, fields = describe(v, block)
    drawn = {field.role: field.draw(v) for field in fields}
    found: dict[str, Value] = {}
    while len(found) < v.pick([2, 2, 3]):
        value = v.draw(roles()[role].kind)
        found.setdefault(value.json, value)
    several = list(found.values())
    comma = "、" if v.language == "zh" else ", "
    head = comma.join(value.text for value in several[:-1])
    both = phrase(v, "asking/list", h=head, z=several[-1].text)
    text = fill(template, {**drawn, role: Value(both, "")})
    asks = []
    for value in several:
        pairs = [(f, value if f.role == role else drawn[f.role]) for f in fields if f.role in slots(template)]
        asks.append(Ask(text=text, tool=tool, arguments=arguments_json(pairs), key=block.names[0]))
    rest = [entry for entry in distinct(v, v.pick([1, 1, 2, 3, 4])) if not clash(entry, asks[0])]
    tools = [tool, *(ask_of(entry).tool for entry in rest)]
    v.rng.shuffle(tools)
    calls = _calls(asks)
    turns = (*system_turn(v, 0.15), Message.of("user", text), calls)
    return Example(skill=skill, language=v.language, messages=turns, tools=tuple(tools))


def missing_example(v: Values, given: bool | None = None, skill: str = "missing") -> Example:
    """A request that leaves out what its tool needs: asked for by name; then the user gives it and the call follows.

    `given` settles whether the conversation goes on to the call. In training some requests lack nothing.
    """
    fields = _needed(v)
    pairs = [(field, field.draw(v)) for field in fields]
    complete = v.split == "train" and given is None and v.chance(0.25)
    gone = None if complete else v.rng.randrange(len(pairs))
    entry = deed(v, num_fields=0)
    tool = Tool(name=entry.ask.tool.name, description=entry.ask.tool.description, parameters=object_schema(v, fields))
    said = [pair for i, pair in enumerate(pairs) if i != gone]
    text = _terse(v, entry, said)
    rest = [other for other in distinct(v, v.pick([1, 1, 2, 3])) if not clash(other, entry)]
    tools = [tool, *(ask_of(other).tool for other in rest if ask_of(other).tool.name != tool.name)]
    v.rng.shuffle(tools)
    turns = [*system_turn(v, 0.15), Message.of("user", text)]
    call = call_message(tool.name, arguments_json(pairs))
    phrases: tuple[str, ...] = ()
    if gone is None:
        turns.append(call)
    else:
        field, value = pairs[gone]
        slots_ = label_slots(field.role, v.language)
        turns.append(Message.of("assistant", phrase(v, "asking/missing", **slots_, n=field.name)))
        if v.chance(0.5) if given is None else given:
            reply = phrase(v, "asking/given", **slots_, v=value.text)
            turns += [Message.of("user", reply), call]
        else:
            phrases = (field.name,)
    return Example(skill=skill, language=v.language, messages=tuple(turns), tools=tuple(tools), phrases=phrases)


def _needed(v: Values) -> list[Field]:
    described = "en" if v.language == "en" or v.chance(0.25) else v.language
    free = [role for role in PARAMETER_ROLES if role not in {"priority", "color", "size"}]
    return make_fields(v, v.rng.sample(free, k=v.pick([1, 1, 2, 2, 3])), described)


def _terse(v: Values, entry: Deed, said: Sequence[tuple[Field, Value]]) -> str:
    task = entry.ask.text.rstrip(".。")
    if not said:
        return task
    lead, joint = (
        ("，", "，") if v.language == "zh" else (", ", v.pick([", ", " and " if v.language == "en" else " und "]))
    )
    return sentence(task.rstrip("?？") + lead + joint.join(parameter(v, *pair) for pair in said), v.language)


def chain_example(v: Values, step: int | None = None, skill: str = "chain") -> Example:
    """A thing is known by its owner only: find its number first, then do what was asked with that number.

    `step` 1 ends at the search, 2 at the call that uses its result; else the whole conversation.
    """
    entry = deed(v, num_fields=0)
    while entry.verb in {"find", "create", "count"}:
        entry = deed(v, num_fields=0)
    described = "en" if v.language == "en" or v.chance(0.25) else v.language
    owner_role = v.pick(["person", "person", "company", "email", "customer", "phone"])
    owner = make_fields(v, [owner_role], described)[0]
    value = owner.draw(v)
    number = f"{entry.thing.identifier}_id" if v.chance(0.6) else v.pick(["id", "number", "reference", "code"])
    finding = f"{v.pick(['find', 'search', 'lookup', 'get'])}_{entry.thing.identifier}_{v.pick(['id', 'number'])}"
    finder = Tool(
        name=spelled(v, finding),
        description=phrase(v, "asking/find.by", described, n=entry.thing.slots(described)["n"]),
        parameters=object_schema(v, [owner]),
    )  # fmt: skip
    key = Field(role="code", name=number, schema={"type": "string"})
    doer = Tool(name=entry.ask.tool.name, description=entry.ask.tool.description, parameters=object_schema(v, [key]))
    code = v.draw("code")
    said = phrase(v, "asking/of", t=sentence(entry.ask.text.rstrip(".。"), v.language), p=value.text)
    tools = _beside(v, [finder, doer], entry)
    turns = [*system_turn(v, 0.15), Message.of("user", said)]
    turns.append(call_message(finder.name, arguments_json([(owner, value)])))
    if step != 1:
        found = v.chance(0.85) or step == 2
        turns.append(Message.of("tool", _found(v, number, code) if found else "{}", tool_call_id="call_0"))
        turns.append(
            call_message(doer.name, arguments_json([(key, code)]), "call_1")
            if found
            else Message.of("assistant", phrase(v, "asking/absent"))
        )
        if found and step is None and v.chance(0.3):
            turns += [Message.of("tool", "ok", tool_call_id="call_1")]
            turns += [Message.of("assistant", phrase(v, "asking/done"))]
    return Example(skill=skill, language=v.language, messages=tuple(turns), tools=tuple(tools))


def _found(v: Values, name: str, code: Value) -> str:
    """The search's result, the number among other things."""
    rows = [(name, code.json)]
    for kind in v.rng.sample(["date", "city", "title", "money"], k=v.pick([0, 0, 1, 2])):
        rows.append(({"date": "created", "city": "city", "title": "title", "money": "value"}[kind], v.draw(kind).json))
    v.rng.shuffle(rows)
    return "{" + v.pick([", ", ","]).join(f'"{name}": {text}' for name, text in rows) + "}"


def _beside(v: Values, tools: list[Tool], entry: Deed) -> list[Tool]:
    names = {tool.name for tool in tools}
    for other in distinct(v, v.pick([1, 1, 2, 3])):
        tool = ask_of(other).tool
        if tool.name not in names and not clash(other, entry):
            tools.append(tool)
            names.add(tool.name)
    v.rng.shuffle(tools)
    return tools


def many_example(v: Values, fits: bool | None = None, skill: str = "many") -> Example:
    """Six to twelve tools, some of them alike: one request, its call, or that none fits."""
    offered = distinct(v, v.rng.randint(6, 12), near=0.5)
    index = v.rng.randrange(len(offered))
    ask = ask_of(offered[index])
    fits = v.chance(0.7) if fits is None else fits
    if not fits:
        del offered[index]
    tools = [ask_of(entry).tool for entry in offered]
    v.rng.shuffle(tools)
    reply = call_message(ask.tool.name, ask.arguments) if fits else Message.of("assistant", NO_TOOL[v.language])
    turns = (*system_turn(v, 0.15), Message.of("user", ask.text), reply)
    return Example(skill=skill, language=v.language, messages=turns, tools=tuple(tools))
