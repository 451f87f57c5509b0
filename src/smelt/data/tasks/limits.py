"""What the model says about itself: the truth, out of numbers that the recipe sets (`about.Limits`)."""

from __future__ import annotations

import functools

from smelt.core.messages import Message
from smelt.data.example import Example
from smelt.data.tasks.about import number_text
from smelt.data.tasks.phrases import entries, phrase
from smelt.data.tasks.talk import system_turn
from smelt.data.tasks.values import Values


@functools.cache
def _questions() -> tuple[str, ...]:
    return tuple(name for name in entries("limits") if not name.startswith("fits") and "." not in name)


def limits_example(v: Values, skill: str = "limits") -> Example:
    """One or more questions about the model itself."""
    turns = [*system_turn(v, 0.3)]
    slots = v.limits.slots(v.language)
    reply, phrases = "", ("",)
    for _ in range(1 if v.split == "test" else v.pick([1, 1, 2, 3])):
        if v.chance(0.25):
            question, reply = _fits(v, slots)
        else:
            name = v.pick(_questions())
            question = phrase(v, f"limits/{name}")
            reply = phrase(v, f"limits/{name}.answer", **slots)
        phrases = (reply.rstrip(".。"),)
        turns += [Message.of("user", question), Message.of("assistant", reply)]
    return Example(skill=skill, language=v.language, messages=tuple(turns), phrases=phrases)


def _fits(v: Values, slots: dict[str, str]) -> tuple[str, str]:
    """A question whether a number of tokens is too many."""
    kind, limit = v.pick([("context", v.limits.context_len), ("output", v.limits.max_output_len)])
    number = v.rng.randint(1, 9) * v.pick([1, 10, 100]) * v.pick([100, 1000])
    if v.chance(0.3):
        number = v.pick([limit, limit + 1, limit // 2, limit * 2, limit - 1])
    verdict = "yes" if number <= limit else "no"
    said = number_text(number, v.language) if v.chance(0.7) else str(number)
    return phrase(v, f"limits/fits.{kind}", n=said), phrase(v, f"limits/fits.{kind}.{verdict}", **slots)
