"""Questions about a passage: small invented events between real sentences; the answer is the value, or that none is
given."""

from __future__ import annotations

from smelt.core.messages import Message
from smelt.data.example import Example
from smelt.data.tasks.catalog import roles
from smelt.data.tasks.phrases import entries, mentions, options, phrase, woven
from smelt.data.tasks.stories import unrelated
from smelt.data.tasks.values import Values


def reading_example(v: Values, known: bool | None = None, skill: str = "reading") -> Example:
    """A passage with one to three events, and questions about them; a fifth has no answer in the text.

    `known` settles whether the last question has one.
    """
    v.wild = 0.1
    names = v.rng.sample(_events(), k=v.pick([1, 2, 2, 3]))
    told = {name: _drawn(v, name) for name in names}
    lines = [woven(v.pick(options(v, f"events/{name}")), facts) for name, facts in told.items()]
    passage = ("" if v.language == "zh" else v.pick([" ", " ", "\n"])).join(_between(v, lines))
    count = 1 if v.split == "test" else v.pick([1, 1, 2, 3])
    answered = [v.chance(0.8) for _ in range(count)]
    if known is not None:
        answered[-1] = known
    turns: list[Message] = []
    reply = ""
    for has_answer in answered:
        question, reply = _asked(v, told) if has_answer else (_beyond(v, told), phrase(v, "events/unknown"))
        said = question if turns else phrase(v, "events/frame", t=passage, q=question)
        turns += [Message.of("user", said), Message.of("assistant", reply)]
    return Example(skill=skill, language=v.language, messages=tuple(turns), phrases=(reply,))


def _events() -> list[str]:
    return [name for name, entry in entries("events").items() if "." not in name and entry.rest]


def _drawn(v: Values, name: str) -> dict[str, str]:
    facts: dict[str, str] = {}
    for role in entries("events")[name].rest.split():
        value = v.draw(roles()[role].kind).text
        while value in facts.values():
            value = v.draw(roles()[role].kind).text
        facts[role] = value
    return facts


def _between(v: Values, lines: list[str]) -> list[str]:
    """The events' sentences among others, none twice."""
    found = list(dict.fromkeys(unrelated(v) for _ in range(v.rng.randint(1, 6))))
    for line in lines:
        found.insert(v.rng.randint(0, len(found)), line)
    return found


def _asked(v: Values, told: dict[str, dict[str, str]]) -> tuple[str, str]:
    """A question whose answer the passage gives."""
    name = v.pick(list(told))
    role = v.pick([key for key in told[name] if f"{name}.{key}" in entries("events")])
    return phrase(v, f"events/{name}.{role}", **told[name]), told[name][role]


def _beyond(v: Values, told: dict[str, dict[str, str]]) -> str:
    """A question that sounds as if the passage answered it: about an event or a person it does not speak of."""
    name = v.pick(_events())
    facts = _drawn(v, name)
    asked = [key for key in facts if f"{name}.{key}" in entries("events")]
    texts = [text for key in asked for text in options(v, f"events/{name}.{key}") if mentions(text)]
    if not texts:
        return _beyond(v, told)
    if name in told:  # with the words of a told event, and names it does not have
        text = v.pick(texts)
        same = any(facts[role] in told[name].values() for role in mentions(text))
        return _beyond(v, told) if same else woven(text, facts)
    mixed = {role: _borrowed(v, told, role) or value for role, value in facts.items()}
    return woven(v.pick(texts), mixed)


def _borrowed(v: Values, told: dict[str, dict[str, str]], role: str) -> str | None:
    """Sometimes a name of the passage, for a question on something it does not tell of that name."""
    found = [facts[role] for facts in told.values() if role in facts]
    return v.pick(found) if found and v.chance(0.4) else None
