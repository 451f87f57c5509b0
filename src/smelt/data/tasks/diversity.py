"""How many different prompts a generator makes once names, numbers and codes are taken out: its shapes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from smelt.data.example import Example
from smelt.data.tasks.catalog import LANGUAGES
from smelt.data.tasks.values import INTEGER_KINDS, NUMBER_KINDS, Split, Value, Values, enum_options

_NUMBER = re.compile(r"\d+")


class Blank(Values):
    """Draws the name of a kind instead of a value of it; everything else is drawn as ever."""

    def draw(self, kind: str, enum_language: str | None = None) -> Value:
        """`<kind>`, or 60 for a number; enumerated kinds and lists as they are."""
        if enum_options(kind, self.language) or kind == "items":
            return super().draw(kind, enum_language)
        if kind in INTEGER_KINDS | NUMBER_KINDS or kind == "quantity_plain":
            return Value("60", "60")
        # what tells two values of one kind apart must stay, or lists of names would be empty
        mark = f"<{kind}{self.rng.randrange(10**6)}>"
        return Value(mark, f'"{mark}"')

    def invented(self, max_syllables: int = 3) -> str:
        """A number in the place of a word that does not exist."""
        return f"w{self.rng.randrange(10**6)}"

    def invented_name(self) -> str:
        """The same for a name."""
        return self.invented()


def skeleton(example: Example) -> str:
    """All that is read before the answer, every run of digits as one 0. Tools count by how many there are."""
    said = "\n".join(f"{message.role}: {message.text}" for message in example.prompt)
    return f"{len(example.tools)}\n{_NUMBER.sub('0', said)}"


def distinct_skeletons(make: Callable[[Values], Example], count: int, split: Split = "train", seed: int = 0) -> int:
    """Distinct skeletons among `count` examples, a third of them in each language."""
    rngs = (random.Random(f"diversity/{seed}/{i}") for i in range(count))
    return len({skeleton(make(Blank(rng, LANGUAGES[i % 3], split))) for i, rng in enumerate(rngs)})
