"""Random values by kind: names, dates, amounts, codes. What is said in a text, and what stands in the JSON.

Word lists are split: every seventh word belongs to the held-out test and is never drawn for training.
Invented words (syllables, random characters, random codes) teach copying instead of remembering.
"""

from __future__ import annotations

import functools
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from smelt.data.example import compact_json
from smelt.data.tasks.about import Limits
from smelt.data.tasks.catalog import more_words, words

Split = Literal["train", "test"]
T = TypeVar("T")

_ONSETS = "b c d f g h k l m n p r s t v w z br st tr kl sh gr pl".split()
_VOWELS = "a e i o u a e o ai ou ei".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "x", "nd", "ck"]
_ENUMS = {
    "size": {"en": "small medium large", "de": "klein mittel groß", "zh": "小 中 大"},
    "unit": {"en": "celsius fahrenheit", "de": "Celsius Fahrenheit", "zh": "摄氏度 华氏度"},
    "priority": {"en": "low medium high", "de": "niedrig mittel hoch", "zh": "低 中 高"},
    "color": {
        "en": "red blue green black white yellow grey brown",
        "de": "rot blau grün schwarz weiß gelb grau braun",
        "zh": "红色 蓝色 绿色 黑色 白色 黄色 灰色 棕色",
    },
}
_NUMBER_WORDS = {
    "en": "one two three four five six seven eight nine ten".split(),
    "de": "einem zwei drei vier fünf sechs sieben acht neun zehn".split(),
    "zh": "一 两 三 四 五 六 七 八 九 十".split(),
}


@dataclass(frozen=True, slots=True)
class Value:
    """`text` as a person writes it, `json` as JSON text."""

    text: str
    json: str


def enum_options(kind: str, language: str) -> list[str] | None:
    """The allowed values of an enumerated kind, or None for a free one."""
    return _ENUMS[kind][language].split() if kind in _ENUMS else None


@functools.cache
def _words_of(name: str, split: Split) -> Sequence[str]:
    """The words of a list that belong to a split; short lists serve both. Training has further words of its own."""
    listed = words(name)
    if len(listed) < 14:
        return listed
    held = [word for i, word in enumerate(listed) if i % 7 == 3]
    if split == "test":
        return held
    return [word for word in dict.fromkeys([*listed, *more_words(name)]) if word not in held]


# Kinds whose values may be any words, and how many.
_OPEN = {
    "sentence": (2, 8), "title": (1, 4), "topic": (1, 4), "product": (1, 2), "company": (1, 3), "person": (2, 2),
    "first": (1, 1), "city": (1, 2), "room": (1, 2), "device": (1, 2), "dish": (1, 3), "job": (1, 2), "issue": (1, 3),
    "cuisine": (1, 1), "country": (1, 1), "language": (1, 1),
}  # fmt: skip


class Values:
    """Draws values for one conversation, deterministic by `rng`."""

    def __init__(
        self,
        rng: random.Random,
        language: str,
        split: Split = "train",
        pools: Mapping[str, Sequence[str]] | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen value
    ) -> None:
        """`pools`: sentences per language; a third of the words of a value, and noise around requests, come from it.

        `wild` is that third: a generator whose texts should read well lowers it.
        `limits`: what the model says of itself.
        """
        self.rng, self.language, self.split = rng, language, split
        self.wild, self.limits = 0.35, limits
        self.pool = (pools or {}).get(language, ())

    def draw(self, kind: str, enum_language: str | None = None) -> Value:
        """A value of `kind`; `enum_language` is the language of an enumerated kind's JSON value."""
        if kind in _ENUMS:
            i = self.rng.randrange(len(_ENUMS[kind]["en"].split()))
            said = _ENUMS[kind][self.language].split()[i]
            return Value(said, compact_json(_ENUMS[kind][enum_language or self.language].split()[i]))
        if kind == "items":
            return self._items()
        if kind in _NUMERIC:
            return _NUMERIC[kind](self)
        if self.pool and kind in _OPEN and self.chance(self.wild):
            text = self.span(*_OPEN[kind])
        else:
            text = _TEXTUAL[kind](self) if kind in _TEXTUAL else self.word(kind)
        return Value(text, compact_json(text))

    def span(self, low: int, high: int) -> str:
        """`low` to `high` running words out of the pool (Chinese: twice as many characters)."""
        sentence = self.pick(self.pool).strip(".,;:!?()'，。、：！？ ")
        if self.language == "zh":
            parts, gap, count = list(re.sub(r"[，。、：！？]", "", sentence)), "", 2 * self.rng.randint(low, high)
        else:
            parts, gap, count = re.sub(r"[.,;:!?()']", "", sentence).split(), " ", self.rng.randint(low, high)
        start = self.rng.randint(0, max(0, len(parts) - count))
        return gap.join(parts[start : start + count]) or self.invented_name()

    def varied(self, template: str) -> str:
        """The template, sometimes with a word less (Chinese: a character), never a slot."""
        if not self.pool or not self.chance(0.3):
            return template
        if self.language == "zh":
            parts, gap = re.findall(r"\{\w+\}|.", template, re.DOTALL), ""
        else:
            parts, gap = template.split(" "), " "
        kept = [part for part in parts if "{" in part or not self.chance(0.12)]
        return gap.join(kept) if len(kept) > 1 else template

    def surrounded(self, text: str, probability: float = 0.25) -> str:
        """The text, sometimes with a sentence before or behind it that has nothing to do with it."""
        if not self.pool or not self.chance(probability):
            return text
        noise = self.pick(self.pool)
        gap = "" if self.language == "zh" else " "
        return noise + gap + text if self.chance(0.5) else text + gap + noise

    def word(self, name: str) -> str:
        """A word of the list `name` for this language and split."""
        return self.pick(_words_of(f"{name}.{self.language}", self.split))

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`."""
        return options[self.rng.randrange(len(options))]

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return self.rng.random() < probability

    def invented(self, max_syllables: int = 3) -> str:
        """A word that does not exist, in Latin letters."""
        count = self.rng.randint(2, max_syllables)
        return "".join(self.pick(_ONSETS) + self.pick(_VOWELS) for _ in range(count)) + self.pick(_CODAS)

    def invented_name(self) -> str:
        """An invented proper name in the language's script."""
        if self.language == "zh":
            return "".join(self.rng.choices(words("chars.zh"), k=self.rng.randint(2, 3)))
        return self.invented().capitalize()

    def digits(self, low: int, high: int) -> str:
        """A run of `low` to `high` digits, the first not 0."""
        return str(self.rng.randint(1, 9)) + "".join(self.rng.choices(string.digits, k=self.rng.randint(low, high) - 1))

    def letters(self, low: int, high: int) -> str:
        """A run of `low` to `high` capitals."""
        return "".join(self.rng.choices(string.ascii_uppercase, k=self.rng.randint(low, high)))

    def _items(self) -> Value:
        things = [self.thing() for _ in range(self.rng.randint(1, 4))]
        if len(things) == 1:
            return Value(things[0], compact_json(things))
        comma, last = {"en": (", ", " and "), "de": (", ", " und "), "zh": ("、", "和")}[self.language]
        return Value(comma.join(things[:-1]) + last + things[-1], compact_json(things))

    def thing(self) -> str:
        """A product in few words."""
        if self.chance(0.2):
            return self.invented_name() + ("" if self.language == "zh" else " ") + self.digits(1, 3)
        if self.chance(0.15):
            return self.invented(2)
        adjective = self.word("adjective") if self.chance(0.4) and self.language != "de" else ""
        gap = " " if adjective and self.language != "zh" else ""
        return adjective + gap + self.word("thing")


def _city(v: Values) -> str:
    return v.invented_name() if v.chance(0.25) else v.word("city")


def _person(v: Values) -> str:
    if v.language == "zh":
        given = v.word("given") if v.chance(0.6) else v.pick(words("chars.zh"))
        return v.word("surname") + given
    last = v.invented().capitalize() if v.chance(0.3) else v.word("last")
    return f"{v.word('first')} {last}"


def _first(v: Values) -> str:
    if v.language == "zh":
        return _person(v)
    return v.invented().capitalize() if v.chance(0.25) else v.word("first")


def _company(v: Values) -> str:
    if v.language == "zh":
        return v.invented_name() + v.word("company_tail")
    name = v.invented().capitalize() if v.chance(0.7) else v.word("last")
    return f"{name} {v.word('company_tail')}" if v.chance(0.8) else name


def _code(v: Values) -> str:
    shapes: list[Callable[[], str]] = [
        lambda: v.digits(4, 8),
        lambda: f"{v.letters(1, 3)}-{v.digits(3, 6)}",
        lambda: f"{v.letters(1, 3)}{v.digits(3, 6)}",
        lambda: f"{v.digits(2, 4)}-{v.digits(3, 4)}",
        lambda: f"{v.letters(2, 2)}{v.digits(1, 2)}{v.letters(1, 2)}{v.digits(1, 3)}",
        lambda: f"{v.letters(2, 3)}-{v.digits(4, 4)}-{v.letters(1, 2)}",
        lambda: f"#{v.digits(3, 5)}",
    ]
    return v.pick(shapes)()


def _date(v: Values) -> str:
    day, month, year = v.rng.randint(1, 28), v.rng.randint(1, 12), v.rng.randint(2019, 2031)
    iso = f"{year}-{month:02d}-{day:02d}"
    if v.language == "zh":
        return v.pick([f"{month}月{day}日", f"{year}年{month}月{day}日", iso, v.pick(words("weekday.zh"))])
    name, weekday = words(f"month.{v.language}")[month - 1], v.pick(words(f"weekday.{v.language}"))
    if v.language == "de":
        return v.pick([f"{day}. {name}", f"{day:02d}.{month:02d}.{year}", f"{day}. {name} {year}", weekday, iso])
    return v.pick([f"{name} {day}", f"{day} {name} {year}", f"{month}/{day}/{year}", weekday, iso])


def _time(v: Values) -> str:
    hour, minute = v.rng.randint(1, 12), v.pick(["00", "15", "30", "45", "10", "20"])
    clock = f"{v.rng.randint(6, 23)}:{minute}"
    if v.language == "zh":
        return v.pick([clock, f"{v.pick(['上午', '下午', '晚上'])}{hour}点", f"{hour}点半"])
    if v.language == "de":
        return v.pick([clock, f"{hour + 6} Uhr"])
    return v.pick([clock, f"{hour}pm", f"{hour} am", f"{hour}:{minute} pm"])


def _email(v: Values) -> str:
    host = v.pick(words("mailhost")) if v.chance(0.5) else f"{v.invented(2)}.{v.pick(['com', 'de', 'cn', 'org'])}"
    name = v.invented(2) if v.chance(0.6) else v.pick(words("first.en")).lower()
    second = v.pick(["", f".{v.invented(2)}", v.digits(1, 3), f"_{v.digits(1, 2)}"])
    return f"{name}{second}@{host}"


def _phone(v: Values) -> str:
    return v.pick(
        [
            f"+{v.digits(2, 2)} {v.digits(2, 3)} {v.digits(6, 7)}",
            f"{v.digits(3, 3)}-{v.digits(4, 4)}",
            f"0{v.digits(3, 3)} {v.digits(5, 7)}",
            f"1{v.digits(10, 10)}",
            f"({v.digits(3, 3)}) {v.digits(3, 3)}-{v.digits(4, 4)}",
        ]
    )


def _address(v: Values) -> str:
    number = v.digits(1, 3)
    if v.language == "zh":
        return f"{v.word('street')}{number}号"
    street = v.word("street")
    if v.chance(0.3):
        street = v.invented().capitalize() + (" Street" if v.language == "en" else "straße")
    return f"{number} {street}" if v.language == "en" else f"{street} {number}"


def _sentence(v: Values) -> str:
    if v.chance(0.5):
        return v.word("sentence")
    pools = ("thing", "topic", "title", "dish", "room", "device", "issue")
    parts = [v.word(v.pick(pools)) for _ in range(v.rng.randint(2, 3))]
    return ("，" if v.language == "zh" else v.pick([" ", ", ", " - "])).join(parts)


def _title(v: Values) -> str:
    if v.chance(0.65):
        return v.word("title")
    gap = "" if v.language == "zh" else " "
    return v.word(v.pick(["thing", "dish", "topic"])) + gap + v.invented_name()


def _topic(v: Values) -> str:
    if v.chance(0.6):
        return v.word("topic")
    gap = "" if v.language == "zh" else " "
    return v.invented_name() + gap + v.word(v.pick(["thing", "dish"]))


def _money(v: Values) -> Value:
    text = v.digits(1, 4)
    if v.chance(0.6):
        cents = f"{v.rng.randint(0, 99):02d}"
        comma = v.language == "de" and v.chance(0.5)
        return Value(f"{text},{cents}" if comma else f"{text}.{cents}", f"{text}.{cents}")
    return Value(text, text)


def _number(v: Values) -> Value:
    text = v.digits(1, 4) if v.chance(0.8) else f"{v.digits(1, 3)}.{v.rng.randint(1, 9)}"
    return Value(text, text)


def _smallint(v: Values) -> Value:
    if v.chance(0.12):
        i = v.rng.randint(2, 10)
        return Value(_NUMBER_WORDS[v.language][i - 1], str(i))
    text = v.digits(1, 2)
    return Value(text, text)


def _plain(low: int, high: int) -> Callable[[Values], Value]:
    def draw(v: Values) -> Value:
        text = str(v.rng.randint(low, high))
        return Value(text, text)

    return draw


_NUMERIC: dict[str, Callable[[Values], Value]] = {
    "money": _money,
    "number": _number,
    "smallint": _smallint,
    "percent": _plain(1, 100),
    "bigint": _plain(1100, 9900),
    "days": _plain(2, 90),
    "quantity_plain": _plain(1, 20),
    "years": _plain(2, 12),
}
INTEGER_KINDS = frozenset({"smallint", "percent", "bigint", "days", "years"})
NUMBER_KINDS = frozenset({"money", "number"})

_TEXTUAL: dict[str, Callable[[Values], str]] = {
    "city": _city,
    "person": _person,
    "first": _first,
    "company": _company,
    "product": Values.thing,
    "code": _code,
    "date": _date,
    "time": _time,
    "email": _email,
    "phone": _phone,
    "address": _address,
    "sentence": _sentence,
    "title": _title,
    "topic": _topic,
    "zip": lambda v: v.digits(5, 5),
    "currency": lambda v: v.pick(words("currency")),
    "flight": lambda v: f"{v.letters(2, 2)}{v.digits(2, 4)}",
    "account": lambda v: f"{v.letters(2, 2)}{v.digits(8, 12)}" if v.chance(0.6) else v.digits(6, 10),
    "symbol": lambda v: v.letters(3, 4),
    "plate": lambda v: f"{v.letters(1, 3)}-{v.letters(1, 2)} {v.digits(2, 4)}",
    "url": lambda v: f"{v.pick(['www.', 'https://', ''])}{v.invented(2)}.{v.pick(['com', 'de', 'cn', 'org', 'io'])}",
    "file": lambda v: (
        f"{v.pick([v.pick(words('word')), v.invented(2)])}{v.pick(['', v.digits(1, 4)])}.{v.pick(words('extension'))}"
    ),
    "timespan": lambda v: f"{v.rng.randint(6, 11)}:{v.pick(['00', '30'])}-{v.rng.randint(16, 22)}:00",
}
