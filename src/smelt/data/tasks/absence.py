"""Noticing that something is not there: keys missing from a list, requests that none of the tools offered does.

Many small decisions per conversation, half of them "no", and near misses among them: a tool for the same thing that
does something else, a tool that does the same with another thing, a key that differs in one letter.
"""

from __future__ import annotations

from collections.abc import Sequence

from smelt.core.messages import Message, Tool
from smelt.data.example import Example, call_message
from smelt.data.tasks.phrases import phrase
from smelt.data.tasks.requests import Ask, catalog_ask, code_ask, train_blocks, train_templates
from smelt.data.tasks.talk import system_turn
from smelt.data.tasks.things import Deed, deed, some_thing, verbs
from smelt.data.tasks.toolcalls import NO_TOOL, rivals
from smelt.data.tasks.values import Values

_KEYS = "city person company code product title".split()
_HELD = "code phone email address date time person city company product sentence title money file topic".split()
_ROWS = ["{k}: {v}", "{k}: {v}", "{k} = {v}", "- {k}: {v}", "{k} - {v}", "{k}\t{v}"]


def lookup_example(v: Values, present: bool | None = None, skill: str = "lookup") -> Example:
    """A list and several look-ups, nearly half of them of keys that are not in it.

    `present` settles whether the last key is there.
    """
    kind = v.pick(_KEYS) if v.chance(0.6) else None
    rows = {_key(v, kind): v.draw(v.pick(_HELD)).text for _ in range(v.rng.randint(2, 8))}
    shape = v.pick(_ROWS)
    listing = "\n".join(shape.format(k=key, v=value) for key, value in rows.items())
    turns: list[Message] = []
    count = v.rng.randint(3, 7) if v.split == "train" else 2
    wanted = [v.chance(0.55) for _ in range(count)]
    if present is not None:
        wanted[-1] = present
    by_system = v.chance(0.2)
    if by_system:
        turns.append(Message.of("system", listing))
    answer = ""
    for i, there in enumerate(wanted):
        key = v.pick(list(rows)) if there else _stranger(v, kind, rows)
        answer = rows.get(key) or phrase(v, "asking/absent")
        question = phrase(v, "asking/lookup", k=key) if v.chance(0.6) else key
        question = question if i or by_system else f"{listing}\n\n{question}"
        turns += [Message.of("user", question), Message.of("assistant", answer)]
    return Example(skill=skill, language=v.language, messages=tuple(turns), phrases=(answer,))


def _key(v: Values, kind: str | None) -> str:
    return v.draw(kind or v.pick(_KEYS)).text


def _stranger(v: Values, kind: str | None, rows: dict[str, str]) -> str:
    """A key that is not in the list, sometimes one that looks like one of them."""
    known = v.pick(list(rows))
    if v.chance(0.35) and known[-1].isdigit():
        key = known[:-1] + v.pick([digit for digit in "0123456789" if digit != known[-1]])
    elif v.chance(0.3) and " " in known:
        key = known.split(" ")[0] + " " + _key(v, kind).rsplit(" ", 1)[-1]
    else:
        key = _key(v, kind)
    return key if key not in rows else _stranger(v, kind, rows)


def _short(v: Values, polite: bool = True) -> Deed | Ask:
    """A short request: a deed, a tool of the catalogue, or a function by name."""
    draw = v.rng.random()
    if draw < 0.62:
        return deed(v, polite=polite)
    if draw < 0.9:
        block = v.pick(train_blocks())
        said = train_templates(block, v.language) if v.split == "train" else block.said[v.language][-1:]
        return catalog_ask(v, block, said)
    return code_ask(v) if v.split == "train" else deed(v, polite=polite)  # its wordings are all learned


def ask_of(entry: Deed | Ask) -> Ask:
    """The request itself."""
    return entry.ask if isinstance(entry, Deed) else entry


def clash(one: Deed | Ask, other: Deed | Ask) -> bool:
    """Whether one's tool could be taken to answer the other's request."""
    a, b = ask_of(one), ask_of(other)
    if a.tool.name == b.tool.name or rivals(a.key) & rivals(b.key):
        return True
    return isinstance(one, Deed) and isinstance(other, Deed) and one.clashes(other)


def near_miss(v: Values, entry: Deed | Ask, polite: bool = True) -> Deed | Ask:
    """A request that shares words with another and means something else."""
    if not isinstance(entry, Deed):
        return _short(v, polite)
    if v.chance(0.5):
        return deed(v, verb=entry.verb, polite=polite)
    return deed(v, thing=entry.thing, polite=polite)


def distinct(v: Values, count: int, near: float = 0.4, polite: bool = True) -> list[Deed | Ask]:
    """`count` requests none of whose tools answers another."""
    kept: list[Deed | Ask] = []
    while len(kept) < count:
        entry = near_miss(v, v.pick(kept), polite) if kept and v.chance(near) else _short(v, polite)
        if not any(clash(entry, other) for other in kept):
            kept.append(entry)
    return kept


def stranger_to(v: Values, offered: Sequence[Deed | Ask]) -> Ask:
    """A request that none of the tools offered does."""
    while True:
        entry = near_miss(v, v.pick(list(offered))) if v.chance(0.6) else _short(v)
        if not any(clash(entry, other) for other in offered):
            return ask_of(entry)


def offered_example(v: Values, fits: bool | None = None, skill: str = "offered") -> Example:
    """A few tools, and short requests that one of them does or none. `fits` settles the last request."""
    offered = distinct(v, v.pick([1, 2, 2, 3, 3, 4, 5]))
    tools = [ask_of(entry).tool for entry in offered]
    v.rng.shuffle(tools)
    turns: list[Message] = [*system_turn(v, 0.15)]
    wanted = [v.chance(0.5) for _ in range(v.rng.randint(2, 5) if v.split == "train" else 1)]
    if fits is not None:
        wanted[-1] = fits
    left = list(offered)
    for i, fit in enumerate(wanted):
        fit = fit and bool(left)
        if fit:
            ask = ask_of(left.pop(v.rng.randrange(len(left))))
            turns += [Message.of("user", ask.text), call_message(ask.tool.name, ask.arguments, f"call_{i}")]
            if i + 1 < len(wanted):
                turns += [
                    Message.of("tool", "ok", tool_call_id=f"call_{i}"),
                    Message.of("assistant", phrase(v, "asking/done")),
                ]
        else:
            said = stranger_to(v, offered).text
            turns += [Message.of("user", said), Message.of("assistant", NO_TOOL[v.language])]
    return Example(skill=skill, language=v.language, messages=tuple(turns), tools=tuple(tools))


def contrast_example(v: Values, fits: bool | None = None, skill: str = "contrast") -> Example:
    """One request among tools that look like its own; in half of the cases its own is there."""
    thing, verb = some_thing(v), v.pick(verbs())
    wanted = deed(v, verb, thing)
    fits = v.chance(0.5) if fits is None else fits
    kept: list[Deed | Ask] = [wanted]
    count = v.rng.randint(2, 6)
    while len(kept) <= count:
        entry: Deed | Ask = deed(v, thing=thing) if v.chance(0.55) else deed(v, verb=verb)
        if not any(clash(entry, other) for other in kept):
            kept.append(entry)
    offered = kept[:count] if fits else kept[1:]
    tools: list[Tool] = [ask_of(entry).tool for entry in offered]
    v.rng.shuffle(tools)
    reply = (
        call_message(wanted.ask.tool.name, wanted.ask.arguments)
        if fits
        else Message.of("assistant", NO_TOOL[v.language])
    )
    turns = (*system_turn(v, 0.15), Message.of("user", wanted.ask.text), reply)
    return Example(skill=skill, language=v.language, messages=turns, tools=tuple(tools))
