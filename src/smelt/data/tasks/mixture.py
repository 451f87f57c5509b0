"""The generated mixture: example number i of a seed is always the same, whatever was drawn before it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from smelt.data.example import Example
from smelt.data.tasks.extraction import basket_example, extract_example, free_example
from smelt.data.tasks.lookup import list_example, long_example, repeat_example
from smelt.data.tasks.service import classify_example, service_example
from smelt.data.tasks.talk import facts_example, talk_example
from smelt.data.tasks.toolcalls import (
    call_example,
    no_tool_example,
    offered_example,
    phrased_ask,
    result_example,
    session_example,
    unseen_ask,
)
from smelt.data.tasks.values import Values

Generator = Callable[[Values], Example]

GENERATORS: Mapping[str, Generator] = {
    "call": call_example,
    "session": session_example,
    "no_tool": no_tool_example,
    "offered": offered_example,
    "result": result_example,
    "extract": extract_example,
    "free": free_example,
    "basket": basket_example,
    "classify": classify_example,
    "service": service_example,
    "facts": facts_example,
    "talk": talk_example,
    "repeat": repeat_example,
    "lookup": list_example,
    "long": lambda v: long_example(v, v.rng.randint(300, 1500)),
    "longer": lambda v: long_example(v, v.rng.randint(2000, 9000)),
}

HELD_OUT: Mapping[str, Generator] = {
    "tool_known": lambda v: call_example(v, phrased_ask, "tool_known"),
    "tool_unseen": lambda v: call_example(v, unseen_ask, "tool_unseen"),
    "no_tool": lambda v: no_tool_example(v, phrased_ask, "no_tool"),
    "tool_result": lambda v: result_example(v, unseen_ask, "tool_result"),
    "extract": lambda v: extract_example(v, "extract"),
    "extract_free": lambda v: free_example(v, "extract_free"),
    "classify": lambda v: classify_example(v, "classify"),
    "service": lambda v: service_example(v, "service"),
    "facts": lambda v: facts_example(v, "facts"),
}


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weights over the generators and the languages; `pools` of sentences make words and surroundings open."""

    weights: Mapping[str, float]
    pools: Mapping[str, Sequence[str]] = field(default_factory=dict)
    languages: Mapping[str, float] = field(default_factory=lambda: {"en": 0.44, "de": 0.28, "zh": 0.28})

    def example(self, seed: int, index: int) -> Example:
        """Example `index` of the stream `seed`."""
        rng = random.Random(f"{seed}/{index}")
        name = rng.choices(list(self.weights), list(self.weights.values()))[0]
        language = rng.choices(list(self.languages), list(self.languages.values()))[0]
        return GENERATORS[name](Values(rng, language, "train", self.pools))


def held_out(suite: str, language: str, count: int, seed: int = 0) -> list[Example]:
    """`count` distinct questions of a held-out suite; words, phrasings and tools that training never draws."""
    found: dict[str, Example] = {}
    index = 0
    while len(found) < count:
        rng = random.Random(f"held-out/{seed}/{suite}/{language}/{index}")
        example = HELD_OUT[suite](Values(rng, language, "test"))
        found.setdefault(repr(example.prompt), example)
        index += 1
    return list(found.values())


def held_out_long(language: str, num_chars: int, count: int, seed: int = 0) -> list[Example]:
    """Questions about one fact in a text of about `num_chars` characters."""
    rngs = [random.Random(f"held-out/{seed}/long/{num_chars}/{language}/{i}") for i in range(count)]
    return [long_example(Values(rng, language, "test"), num_chars) for rng in rngs]
