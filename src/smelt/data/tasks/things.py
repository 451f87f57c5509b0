"""Deeds: short requests made of a verb and a thing ("lock the greenhouse"), and the tool that does just that."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from smelt.core.messages import Tool
from smelt.data.tasks.catalog import LANGUAGES, roles
from smelt.data.tasks.phrases import entries, genders, label_slots, options, phrase, sentence, woven
from smelt.data.tasks.requests import Ask, spelled
from smelt.data.tasks.schemas import Field, arguments_json, make_fields, object_schema
from smelt.data.tasks.values import Split, Value, Values

_ARTICLES = {"m": ("der", "den", "einen"), "f": ("die", "die", "eine"), "n": ("das", "das", "ein"), "p": ("die",) * 3}
# Verbs that somebody could take for each other; two of a group never stand beside the same thing.
_KIN = tuple(
    frozenset(group.split())
    for group in (
        "get find check count print export share", "update rename move extend", "lock stop reject delete archive",
        "unlock restore start approve", "share send assign", "create reserve", "check rate repair", "approve reserve",
    )
)  # fmt: skip
PARAMETER_ROLES = (
    "code customer date time count person city amount note email phone room percent title product company order"
    " priority file minutes due address country quantity value zip invoice booking ticket account color size"
).split()


@dataclass(frozen=True, slots=True)
class Thing:
    """What a deed is about: its identifier, its word per language, German gender and accusative."""

    identifier: str
    said: tuple[str, str, str]
    gender: str
    accusative: str

    def slots(self, language: str) -> dict[str, str]:
        """{n} the bare word, {the} with its article, {den} as an object, {einen} a new one."""
        word = self.said[LANGUAGES.index(language)]
        if language == "de":
            the, den, a = _ARTICLES[self.gender]
            a = f"{a} {self.accusative}" if self.gender != "p" else word
            return {"n": word, "the": f"{the} {word}", "den": f"{den} {self.accusative}", "einen": a}
        the = f"the {word}" if language == "en" else word
        return {"n": word, "the": the, "den": the, "einen": word}


@functools.cache
def things(split: Split) -> tuple[Thing, ...]:
    """The things of a split."""
    text = (resources.files("smelt.data.tasks") / "catalog" / "objects.txt").read_text("utf-8")
    part = text.split(f"[{split}]\n")[1].split("\n[")[0]
    found = []
    for row in part.splitlines():
        identifier, english, german, chinese = row.split(" | ")
        word, _, grammar = german.rpartition(" ")
        gender, _, accusative = grammar.partition(":")
        found.append(Thing(identifier, (english, word, chinese), gender, accusative or word))
    return tuple(found)


@functools.cache
def verbs() -> tuple[str, ...]:
    """The verbs there are."""
    return tuple(name for name in entries("verbs") if not name.endswith(".d"))


def some_thing(v: Values) -> Thing:
    """A thing of the split; a fifth of them have names nobody has heard."""
    if not v.chance(0.2):
        return v.pick(things(v.split))
    name = v.invented()
    chinese = v.invented_name() if v.language == "zh" else name
    return Thing(name, (name, name.capitalize(), chinese), v.pick("mfn"), name.capitalize())


def akin(one: str, other: str) -> bool:
    """Whether two verbs could be taken for each other."""
    return one == other or any(one in group and other in group for group in _KIN)


@dataclass(frozen=True, kw_only=True)
class Deed:
    """A verb and a thing, with the request, the tool and the arguments."""

    verb: str
    thing: Thing
    ask: Ask

    def clashes(self, other: Deed) -> bool:
        """Whether one's tool might be thought to do what the other asks."""
        return self.thing.said == other.thing.said and akin(self.verb, other.verb)


def deed(
    v: Values, verb: str | None = None, thing: Thing | None = None, num_fields: int | None = None, polite: bool = True
) -> Deed:
    """A request for `verb` on `thing` (drawn where not given), with `num_fields` parameters (0 to 2 by default)."""
    verb = verb or v.pick(verbs())
    thing = thing or some_thing(v)
    described = "en" if v.language == "en" or v.chance(0.25) else v.language
    count = v.pick([0, 0, 0, 1, 1, 2]) if num_fields is None else num_fields
    fields = make_fields(v, v.rng.sample(PARAMETER_ROLES, k=count), described)
    pairs = [(field, field.draw(v)) for field in fields]
    tool = Tool(
        name=spelled(v, f"{v.pick(entries('verbs')[verb].rest.split())}_{thing.identifier}"),
        description=description(verb, thing, described) if v.chance(0.75) else "",
        parameters=object_schema(v, fields),
    )
    task = phrase(v, f"verbs/{verb}", **thing.slots(v.language))
    text = sentence(with_parameters(v, task, pairs, polite), v.language)
    if v.chance(0.2):  # people leave the stop out
        text = text.rstrip(".。")
    ask = Ask(
        text=text, tool=tool, arguments=arguments_json(pairs), key=f"{verb} {thing.identifier}", pairs=tuple(pairs)
    )
    return Deed(verb=verb, thing=thing, ask=ask)


def description(verb: str, thing: Thing, language: str) -> str:
    """What the tool of a deed says it does."""
    text = woven(entries("verbs")[f"{verb}.d"].said[language, "train"][0], thing.slots(language))
    return text[0].upper() + text[1:]


def with_parameters(v: Values, task: str, pairs: Sequence[tuple[Field, Value]], polite: bool = True) -> str:
    """The task, in a polite frame where wanted, its parameters said behind it."""
    frame = v.pick(options(v, "asking/polite")) if polite else "{t}"
    if not _fits(frame, task):
        frame = "{t}"
    lowered = v.language == "en" and not frame.startswith("{t}") and not task.startswith("I ")
    text = woven(frame, {"t": task[0].lower() + task[1:] if lowered else task})
    if not pairs:
        return text
    gap = "" if v.language == "zh" else " "
    joint = v.pick(options(v, "asking/and"))
    joint = joint + gap if joint in ",;，；、" else f"{gap}{joint}{gap}"
    lead = v.pick(["，", "：", "，"]) if v.language == "zh" else v.pick([", ", ": ", ", ", " - "])
    return text.rstrip("?？") + lead + joint.join(parameter(v, field, value) for field, value in pairs)


_COURTEOUS = ("please", "bitte", "Bitte", "请", "麻烦", "帮", "拜托")
_NO_ORDERS = ("I ", "please", "is ", "how ", "what ", "where ", "can ", "could ", "somebody", "let ", "a new", "the ",
              "some ", "no more", "nobody", "would ")  # fmt: skip


def _fits(frame: str, task: str) -> bool:
    """Whether the frame reads well around the task: not polite twice, no question around what is no order."""
    if any(word in frame for word in _COURTEOUS) and any(word in task for word in _COURTEOUS):
        return False
    asks = any(word in frame for word in ("you {t}", "you to {t}", "please {t}", "麻烦{t}", "帮个忙"))
    return not (asks and (task.startswith(_NO_ORDERS) or task[-1] in "?？")) and not (
        task[-1] in "?？" and not frame.endswith("{t}")
    )


def parameter(v: Values, field: Field, value: Value) -> str:
    """How a request names a parameter and its value."""
    labels = label_slots(field.role, v.language)
    if v.chance(0.2) and field.name.replace("_", " ") != roles()[field.role].labels[v.language]:
        return f"{field.name} {value.text}"
    if genders()[field.role] == "p":  # "the minutes is 5"
        return f"{labels['l']}{'：' if v.language == 'zh' else ': '}{value.text}"
    return phrase(v, "asking/with", **labels, v=value.text)
