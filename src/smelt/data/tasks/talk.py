"""Small talk, system prompts, and questions about facts that a system prompt states."""

from __future__ import annotations

from smelt.core.messages import Message
from smelt.data.example import Example
from smelt.data.tasks.catalog import blocks
from smelt.data.tasks.values import Values

_SYSTEM = {
    "en": [
        "You are a helpful assistant.",
        "You are a customer service assistant for an online shop.",
        "You are the assistant of {c}.",
        "Use the tools when they help.",
        "Answer briefly.",
        "You are a support agent at {c}. Be polite.",
        "You help customers of {c} with their orders.",
    ],
    "de": [
        "Du bist ein hilfreicher Assistent.",
        "Du bist ein Assistent im Kundenservice eines Onlineshops.",
        "Du bist der Assistent von {c}.",
        "Nutze die Werkzeuge, wenn sie helfen.",
        "Antworte kurz.",
        "Sie sind Mitarbeiter im Kundenservice von {c}.",
    ],
    "zh": [
        "你是一个有用的助手。",
        "你是网店的客服助手。",
        "你是{c}的助手。",
        "需要时请使用工具。",
        "请简短回答。",
        "你是{c}的客服，请礼貌回答。",
    ],
}


def system_turn(v: Values, probability: float = 0.3) -> tuple[Message, ...]:
    """A system (sometimes developer) turn, or none. A third of them are in English whatever the user speaks."""
    if not v.chance(probability):
        return ()
    language = "en" if v.chance(0.3) else v.language
    text = v.pick(_SYSTEM[language]).format(c=v.draw("company").text)
    return (Message.of("developer" if v.chance(0.1) else "system", text),)


def talk_pair(v: Values) -> tuple[str, str]:
    """What somebody says in passing, and the answer."""
    block = v.pick(blocks("talk.txt"))
    return v.pick(block.said[v.language]), block.replies[v.language].replace("{name}", v.limits.name)


def talk_example(v: Values) -> Example:
    """One or two turns of small talk."""
    turns = [*system_turn(v, 0.4)]
    for _ in range(v.pick([1, 1, 2])):
        said, reply = talk_pair(v)
        turns += [Message.of("user", said), Message.of("assistant", reply)]
    return Example(skill="talk", language=v.language, messages=tuple(turns), phrases=(turns[-1].text,))


def facts_example(v: Values, skill: str = "facts") -> Example:
    """A system prompt with facts of a shop, and questions about them."""
    chosen = v.rng.sample(list(blocks("facts.txt")), k=v.rng.randint(2, 5))
    drawn = [v.draw(block.rest).text for block in chosen]
    opening = v.pick(_SYSTEM[v.language][1:3]).format(c=v.draw("company").text)
    gap = "" if v.language == "zh" else " "
    lines = [block.texts[v.language][0].format(v=value) for block, value in zip(chosen, drawn, strict=True)]
    turns = [Message.of("system", gap.join([opening, *lines]))]
    asked = v.rng.sample(range(len(chosen)), k=1 if v.split == "test" else v.rng.randint(1, 2))
    for i in asked:
        questions = chosen[i].said[v.language]
        question = questions[-1] if v.split == "test" else v.surrounded(v.varied(v.pick(questions[:-1])), 0.15)
        reply = chosen[i].replies[v.language].format(v=drawn[i])
        turns += [Message.of("user", question), Message.of("assistant", reply)]
    return Example(skill=skill, language=v.language, messages=tuple(turns), phrases=(drawn[asked[-1]],))
