"""Texts that tell facts: composed of an opening, a clause per fact, what was corrected, and sentences that say nothing.

A text is put together from independent choices (which facts, which words for each, their order, how they are joined,
what stands between them, and the layout), so that hardly two have the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from smelt.data.tasks.catalog import roles
from smelt.data.tasks.phrases import entries, known, label_slots, mentions, options, phrase, sentence, woven
from smelt.data.tasks.values import Values

# Facts of these kinds may have been different before.
_FIXABLE = frozenset("date time address email phone money city code person room smallint".split())


@dataclass(kw_only=True)
class Story:
    """What is to be told: the kind of record, its facts as said, extra sentences, and values that no longer hold."""

    kind: str
    facts: Mapping[str, str]
    extra: list[str] = field(default_factory=list)
    clauses: list[str] = field(default_factory=list)
    old: dict[str, str] = field(default_factory=dict)


def kinds() -> tuple[str, ...]:
    """The kinds of records."""
    return tuple(name for name in entries("records") if "." not in name)


def kind_roles(kind: str) -> list[str]:
    """The roles a record of this kind may tell."""
    return entries("records")[kind].rest.split()


def outdate(v: Values, story: Story) -> None:
    """Give one fact a value it had before, so that the text names two and only one is right."""
    open_to = [role for role in story.facts if roles()[role].kind in _FIXABLE]
    if open_to:
        role = v.pick(open_to)
        before = v.draw(roles()[role].kind).text
        if before != story.facts[role]:
            story.old[role] = before


def told(v: Values, story: Story) -> str:
    """The story in one of the layouts."""
    draw = v.rng.random()
    if draw < 0.52:
        return " ".join(sentences(v, story)) if v.language != "zh" else "".join(sentences(v, story))
    if draw < 0.66:
        return _mail(v, story)
    if draw < 0.78:
        return _chat(v, story)
    return _form(v, story) if draw < 0.9 else _note(v, story)


def sentences(v: Values, story: Story) -> list[str]:
    """The story as running sentences: an opening that covers some facts, the rest in any order."""
    opening, covered = _opening(v, story)
    rest = [role for role in story.facts if role not in covered]
    v.rng.shuffle(rest)
    clauses = [clause(v, story, role) for role in rest] + story.clauses
    if story.clauses:
        v.rng.shuffle(clauses)
    found = [*_joined(v, clauses), *story.extra]
    if story.extra:
        v.rng.shuffle(found)
    if opening:
        found.insert(0 if v.chance(0.8) else v.rng.randint(0, len(found)), opening)
    return _with_filler(v, found)


def _opening(v: Values, story: Story) -> tuple[str, set[str]]:
    fitting = [text for text in options(v, f"records/{story.kind}") if set(mentions(text)) <= story.facts.keys()]
    fitting = [text for text in fitting if not set(mentions(text)) & story.old.keys()]
    if not fitting or v.chance(0.15):
        return "", set()
    template = v.pick(fitting)
    return woven(template, story.facts), set(mentions(template))


def clause(v: Values, story: Story, role: str) -> str:
    """One fact in a clause. A value that begins small never begins it, for sentences begin large."""
    value = story.facts[role]
    labels = label_slots(role, v.language)
    if role in story.old:
        return phrase(v, "clauses/fixed", **labels, v=value, w=story.old[role])
    said = f"clauses/{role}" if known(f"clauses/{role}") and not v.chance(0.15) else "clauses/any"
    texts: Sequence[str] = options(v, said)
    if value[0].islower():
        texts = [text for text in texts if not text.startswith("{v}")] or [options(v, "clauses/any")[0]]
    return woven(v.pick(texts), {**labels, "v": value})


def _joined(v: Values, clauses: list[str]) -> list[str]:
    """Clauses as sentences, some two or three to a sentence."""
    found: list[str] = []
    left = list(clauses)
    while left:
        text = left.pop(0)
        while left and v.chance(0.3):
            joint = v.pick(options(v, "layout/and"))
            gap = "" if v.language == "zh" or joint[0] in ",;" else " "
            text += f"{gap}{joint}{'' if v.language == 'zh' else ' '}{left.pop(0)}"
        found.append(sentence(text, v.language))
    return found


def _with_filler(v: Values, found: list[str]) -> list[str]:
    for _ in range(v.pick([0, 0, 0, 1, 1, 2])):
        found.insert(v.rng.randint(0, len(found)), unrelated(v, 0.35))
    return found


def unrelated(v: Values, share: float = 0.7) -> str:
    """A sentence that tells none of the facts: of running text with `share`, where there is any, or a common phrase."""
    return v.pick(v.pool) if v.pool and v.chance(share) else phrase(v, "layout/filler")


def kind_name(v: Values, kind: str, language: str | None = None) -> str:
    """What a kind of record is called."""
    return options(v, f"records/{kind}.name", language)[0]


def _mail(v: Values, story: Story) -> str:
    body = ("" if v.language == "zh" else " ").join(sentences(v, story))
    lines = [phrase(v, "layout/hello"), body, phrase(v, "layout/bye")]
    if v.chance(0.6):
        lines.insert(0, phrase(v, "layout/subject", k=kind_name(v, story.kind)))
    return v.pick(["\n", "\n\n"]).join(lines)


def _chat(v: Values, story: Story) -> str:
    """Some facts come unasked, the others in answer to a question."""
    agent, client = phrase(v, "layout/agent"), phrase(v, "layout/client")
    colon = "：" if v.language == "zh" else ": "
    asked = [role for role in story.facts if role not in story.old and v.chance(0.55)]
    v.rng.shuffle(asked)
    unasked = Story(
        kind=story.kind,
        facts={role: value for role, value in story.facts.items() if role not in asked},
        extra=story.extra,
        clauses=story.clauses,
        old=story.old,
    )
    gap = "" if v.language == "zh" else " "
    lines = [(agent, phrase(v, "layout/agent.hello"))] if v.chance(0.7) else []
    if said := sentences(v, unasked):
        lines.append((client, gap.join(said)))
    for role in asked:
        lines.append((agent, phrase(v, "layout/agent.ask", **label_slots(role, v.language))))
        lines.append((client, phrase(v, "layout/client.answer", v=story.facts[role])))
    if v.chance(0.5):
        lines.append((agent, phrase(v, "layout/agent.bye")))
    return "\n".join(f"{who}{colon}{what}" for who, what in lines)


def _form(v: Values, story: Story) -> str:
    """Labelled lines, the extra sentences behind them."""
    colon = "：" if v.language == "zh" else v.pick([": ", ": ", " - ", " = ", ":\t"])
    order = list(story.facts)
    v.rng.shuffle(order)
    labels = {role: label_slots(role, v.language)["L"] for role in order}
    lines = [f"{labels[role]}{colon}{story.facts[role]}" for role in order if role not in story.old]
    lines += [sentence(clause(v, story, role), v.language) for role in order if role in story.old]
    lines += [*(sentence(text, v.language) for text in story.clauses), *story.extra]
    if v.chance(0.4):
        name = kind_name(v, story.kind)
        lines.insert(0, name[0].upper() + name[1:])
    return "\n".join(lines)


def _note(v: Values, story: Story) -> str:
    """Telegram style: clauses and bare labels on one line."""
    joint = v.pick(["，", "；"]) if v.language == "zh" else v.pick([", ", "; ", " / ", " - "])
    order = list(story.facts)
    v.rng.shuffle(order)
    parts = []
    for role in order:
        if role in story.old or v.chance(0.5):
            parts.append(clause(v, story, role))
        else:
            gap = "" if v.language == "zh" else " "
            parts.append(f"{label_slots(role, v.language)['l']}{gap}{story.facts[role]}")
    parts += story.clauses
    text = joint.join(parts)
    lines = ([text[0].upper() + text[1:]] if text else []) + story.extra
    return "\n".join(lines)
