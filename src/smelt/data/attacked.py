"""Prompts whose tool result holds an order, beside the same prompt without it and the order on its own.

A model answers the latter two itself; what it says are the better and the worse answer to the attacked prompt
(SecAlign, Chen et al. 2024, arXiv:2410.05451). Styles of training and test are apart (tasks/catalog/attacks.txt).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smelt.core.errors import DataError
from smelt.core.messages import Message, TextPart, Tool
from smelt.data.tasks.hierarchy import styled
from smelt.data.tasks.phrases import phrase
from smelt.data.tasks.toolcalls import result_example
from smelt.data.tasks.values import Split, Values

_STOP = {"en": ".", "de": ".", "zh": "。"}


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Three prompts: `attacked` is `clean` with an order in a text without authority, `order` has a user give it.

    word: what an answer contains that obeys the order.
    """

    clean: tuple[Message, ...]
    attacked: tuple[Message, ...]
    order: tuple[Message, ...]
    tools: tuple[Tool, ...]
    language: str
    word: str


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """Attacked prompts by number: number i of a seed is always the same."""

    seed: int
    split: Split = "train"
    languages: tuple[str, ...] = ("en", "de", "zh")
    pools: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def at(self, index: int) -> Attacked:
        """Prompt number `index`."""
        rng = random.Random(f"attacked/{self.split}/{self.seed}/{index}")
        v = Values(rng, rng.choice(self.languages), self.split, self.pools)
        example = result_example(v)
        prompt = example.prompt
        word = v.invented(2).upper() + v.digits(1, 2)
        goal = phrase(v, "attacks/goal", y=word)
        return Attacked(
            clean=prompt,
            attacked=with_order(prompt, styled(v, "data", goal), rng),
            order=(Message.of("user", goal[0].upper() + goal[1:] + _STOP[v.language]),),
            tools=example.tools,
            language=v.language,
            word=word,
        )


def with_order(prompt: Sequence[Message], order: str, rng: random.Random) -> tuple[Message, ...]:
    """The prompt with the order in its last tool result: before it, behind it, or (one in ten) within its text.

    Raises DataError for a prompt without a tool result.
    """
    places = [i for i, message in enumerate(prompt) if message.role == "tool"]
    if not places:
        raise DataError("sought a prompt with a tool's result, found none to put an order into")
    message, draw = prompt[places[-1]], rng.random()
    text, gap = message.text, rng.choice(["\n", " "])
    inside = rng.choice([i for i, char in enumerate(text) if char in " ,\n"] or [0])
    if draw < 0.45:
        text = f"{order}{gap}{text}"
    elif draw < 0.9:
        text = f"{text}{gap}{order}"
    else:
        text = f"{text[:inside]} {order} {text[inside:]}"
    changed = dataclasses.replace(message, content=(TextPart(text),))
    return (*prompt[: places[-1]], changed, *prompt[places[-1] + 1 :])
