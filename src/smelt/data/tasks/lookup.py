"""Saying again and finding again: short copying to teach it early, and one fact in a long text."""

from __future__ import annotations

from smelt.core.messages import Message, ResponseFormat
from smelt.data.example import Example, compact_json
from smelt.data.tasks.catalog import roles
from smelt.data.tasks.values import Values

_KINDS = "city person company code date time email phone product sentence title money file address url topic".split()
_REPEAT = {
    "en": ["Repeat: {t}", "Say: {t}", "Repeat after me: {t}", "Echo: {t}"],
    "de": ["Wiederhole: {t}", "Sag: {t}", "Sprich mir nach: {t}"],
    "zh": ["重复：{t}", "请说：{t}", "跟我说：{t}"],
}
_OF = {"en": "The {l} of {n} is {v}.", "de": "{l} von {n}: {v}.", "zh": "{n}的{l}是{v}。"}
_ASK = {
    "en": ["What is the {l} of {n}?", "Tell me the {l} of {n}."],
    "de": ["Was ist {l} von {n}?", "Nenne {l} von {n}."],
    "zh": ["{n}的{l}是什么？", "告诉我{n}的{l}。"],
}
_LABELS = "code phone email address date time amount room order city invoice account".split()
_FILLER = {
    "en": [
        "Thank you for the update.",
        "The team met on {d} and looked at the plan.",
        "{p} wrote that everything goes on as before.",
        "We talked about {t} for a while.",
        "There is nothing new about {t}.",
        "{p} will send the notes on {d}.",
        "The office in {c} stays open.",
        "Please read the list again before {d}.",
        "Many people asked about {t}, and {p} answered.",
        "In {c} the weather was fine.",
    ],
    "de": [
        "Danke für die Nachricht.",
        "Das Team traf sich am {d} und sah sich den Plan an.",
        "{p} schrieb, dass alles weitergeht wie bisher.",
        "Wir sprachen eine Weile über {t}.",
        "Zu {t} gibt es nichts Neues.",
        "{p} schickt die Notizen am {d}.",
        "Das Büro in {c} bleibt offen.",
        "Bitte lesen Sie die Liste vor dem {d} noch einmal.",
    ],
    "zh": [
        "谢谢你的消息。",
        "团队在{d}开会讨论了计划。",
        "{p}说一切照旧。",
        "我们谈了一会儿{t}。",
        "{t}没有什么新消息。",
        "{p}会在{d}发送记录。",
        "{c}的办公室照常开门。",
        "请在{d}之前再看一遍清单。",
    ],
}


def repeat_example(v: Values) -> Example:
    """Say a text again."""
    if v.pool and v.chance(0.6):
        text = v.pick(v.pool)
        turns = [Message.of("user", v.pick(_REPEAT[v.language]).format(t=text)), Message.of("assistant", text)]
        return Example(skill="repeat", language=v.language, messages=tuple(turns), phrases=(text,))
    parts = [v.draw(v.pick(_KINDS)).text for _ in range(v.rng.randint(1, 5))]
    text = v.pick([", ", " ", "; ", "\n"]).join(parts)
    turns = [Message.of("user", v.pick(_REPEAT[v.language]).format(t=text)), Message.of("assistant", text)]
    return Example(skill="repeat", language=v.language, messages=tuple(turns), phrases=(text,))


def filler(v: Values) -> str:
    """A sentence that says nothing of use."""
    return v.pick(_FILLER[v.language]).format(
        d=v.draw("date").text, p=v.draw("first").text, t=v.draw("topic").text, c=v.draw("city").text
    )


def long_example(v: Values, num_chars: int, skill: str = "long") -> Example:
    """A text of about `num_chars` characters with a few facts in it, and a question about one: free or by schema."""
    gap = "" if v.language == "zh" else v.pick([" ", "\n"])
    same = filler(v) if v.chance(0.3) else None
    sentences, size = [], 0
    while size < num_chars:
        sentences.append(same or filler(v))
        size += len(sentences[-1]) + 1
    by_schema = v.chance(0.5)
    count = v.rng.randint(1, 3)
    labels = v.rng.sample(_LABELS, k=count)
    drawn = [v.draw(roles()[label].kind).text for label in labels]
    said = [roles()[label].labels[v.language] for label in labels]
    if by_schema:
        joint = {"en": " and ", "de": " und ", "zh": "，"}[v.language]
        form = {"en": "the {l} is {v}", "de": "{l} ist {v}", "zh": "{l}是{v}"}[v.language]
        fact = joint.join(form.format(l=label, v=value) for label, value in zip(said, drawn, strict=True))
        facts = [fact[0].upper() + fact[1:] + ("。" if v.language == "zh" else ".")]
    else:
        names = [v.draw("person").text for _ in labels]
        told = zip(said, names, drawn, strict=True)
        facts = [_OF[v.language].format(l=label, n=name, v=value) for label, name, value in told]
    for fact in facts:
        sentences.insert(v.rng.randint(0, len(sentences)), fact)
    text = gap.join(sentences)
    if by_schema:
        return _long_schema(v, text, labels, drawn, skill)
    turns: list[Message] = []
    for i in v.rng.sample(range(count), k=1 if v.split == "test" else count):
        question = v.pick(_ASK[v.language]).format(l=said[i], n=names[i])
        user = question if turns else text + "\n\n" + question
        turns += [Message.of("user", user), Message.of("assistant", facts[i])]
        last = drawn[i]
    return Example(skill=skill, language=v.language, messages=tuple(turns), phrases=(last,))


def _long_schema(v: Values, text: str, labels: list[str], drawn: list[str], skill: str) -> Example:
    names = [v.pick(roles()[label].properties[:3]) for label in labels]
    if len(set(names)) < len(names):
        names = labels
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    answer = compact_json(dict(zip(names, drawn, strict=True)))
    instruction = {"en": "Extract the fields from the text.", "de": "Extrahiere die Felder aus dem Text.",
                   "zh": "从文本中提取字段。"}[v.language]  # fmt: skip
    return Example(
        skill=skill,
        language=v.language,
        messages=(Message.of("system", instruction), Message.of("user", text), Message.of("assistant", answer)),
        response_format=ResponseFormat(kind="json_schema", name="Answer", schema=schema),
    )
