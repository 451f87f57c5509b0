"""Customer service by the book: the rules stand in the system prompt, cases are held against them, the rest is said to
be unknown."""

from __future__ import annotations

from smelt.core.messages import Message
from smelt.data.example import Example
from smelt.data.tasks.phrases import entries, phrase
from smelt.data.tasks.values import Values

Turn = tuple[str, str, tuple[str, ...]]


def policy_example(v: Values, skill: str = "policy") -> Example:
    """A policy and a customer over one to four turns: facts, cases, questions it does not answer, an order number."""
    v.wild = 0.0
    topics = [name for name in entries("policies") if "." not in name and entries("policies")[name].rest]
    stated = v.rng.sample(topics, k=v.rng.randint(2, 6))
    known = {name: v.draw(entries("policies")[name].rest.split()[0]).text for name in stated}
    lines = [phrase(v, f"policies/{name}", v=value) for name, value in known.items()]
    gap = v.pick(["\n", "\n- ", "" if v.language == "zh" else " "])
    system = gap.join([phrase(v, "policies/role", c=v.draw("company").text), *lines])
    turns = [Message.of("system", system)]
    sought: tuple[str, ...] = ()
    for _ in range(1 if v.split == "test" else v.pick([1, 2, 2, 3, 4])):
        for said, reply, phrases in _exchange(v, known, [name for name in topics if name not in known]):
            sought = phrases
            turns += [Message.of("user", said), Message.of("assistant", reply)]
    return Example(skill=skill, language=v.language, messages=tuple(turns), phrases=sought)


def _exchange(v: Values, known: dict[str, str], unknown: list[str]) -> list[Turn]:
    draw = v.rng.random()
    if unknown and draw < 0.2:
        reply = phrase(v, "policies/unknown")
        return [(phrase(v, f"policies/{v.pick(unknown)}.ask"), reply, (reply,))]
    if draw < 0.32:
        return _order(v)
    cases = [name for name in known if len(entries("policies")[name].rest.split()) > 1]
    if cases and draw < 0.68:
        return [_case(v, v.pick(cases), known)]
    name = v.pick(list(known))
    return [(phrase(v, f"policies/{name}.ask"), phrase(v, f"policies/{name}.say", v=known[name]), (known[name],))]


def _case(v: Values, name: str, known: dict[str, str]) -> Turn:
    """A number held against the rule's."""
    limit = int(known[name])
    number = v.rng.randint(max(1, limit // 3), limit * 2) if v.chance(0.8) else limit
    allowed = number <= limit if entries("policies")[name].rest.endswith("down") else number >= limit
    slots = {"n": str(number), "v": known[name]}
    reply = phrase(v, f"policies/{name}.case.{'yes' if allowed else 'no'}", **slots)
    return phrase(v, f"policies/{name}.case", **slots), reply, (reply.rstrip(".。"),)


def _order(v: Values) -> list[Turn]:
    """A question that needs the order's number first."""
    number = v.draw("code").text
    ask, say = phrase(v, "policies/status.ask"), phrase(v, "policies/status.say", v=number)
    return [
        (phrase(v, "policies/status"), ask, (ask,)),
        (phrase(v, "policies/status.given", v=number), say, (number,)),
    ]
