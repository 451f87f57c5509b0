"""A model for longer texts: its shape stretched, and long documents to learn the new distances from.

Global layers turn more slowly (a larger rotary base, as in Gemma 3 and Code Llama, arXiv:2308.12950); sliding layers
see as far as before, so they keep theirs. A short training then teaches the distances that were never seen.
Shapes: T tokens of a document.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError, UnsupportedError
from smelt.data.example import Example
from smelt.data.packing import Piece
from smelt.data.stream import Texts
from smelt.data.tasks.lookup import long_example
from smelt.data.tasks.values import Values

_CHARS_PER_TOKEN = {"en": 3.0, "de": 2.6, "zh": 1.2}  # low, so that few examples come out too long


def stretched(config: DecoderConfig, context_len: int, rope_base: float) -> DecoderConfig:
    """The same weights for `context_len` tokens, with `rope_base` in the layers that see everything.

    Raises InvalidRequestError for a shorter context or a smaller base, and UnsupportedError where global layers share
    a rotary embedding with sliding ones or have a scaled one: another base there would be another model.
    """
    everywhere = {layer.rope for layer in config.layers if layer.window is None}
    sliding = {layer.rope for layer in config.layers if layer.window is not None}
    if context_len < config.context_len:
        raise InvalidRequestError(f"context_len is {context_len}; the model already has {config.context_len}")
    if everywhere & sliding:
        raise UnsupportedError("global and sliding layers share a rotary embedding; sought one of their own")
    ropes = list(config.ropes)
    for i in everywhere:
        if ropes[i].scaling != "default":
            raise UnsupportedError(f"rotary scaling {ropes[i].scaling!r} is there already; sought none")
        if rope_base < ropes[i].base:
            raise InvalidRequestError(f"rope_base is {rope_base:g}; sought at least the model's own {ropes[i].base:g}")
        ropes[i] = dataclasses.replace(ropes[i], base=rope_base)
    return dataclasses.replace(config, context_len=context_len, ropes=tuple(ropes))


@dataclass(frozen=True, kw_only=True)
class LongTasks:
    """Facts somewhere in a long text, and a question about one; lengths even on a logarithmic scale up to `max_len`.

    `at(i)` is always the same example for i; it may come out longer than `max_len`, and is then left out by who reads.
    """

    seed: int
    min_len: int
    max_len: int
    languages: tuple[str, ...] = ("en", "de", "zh")
    pools: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def at(self, index: int) -> Example:
        """Example number `index`."""
        rng = random.Random(f"long/{self.seed}/{index}")
        language = rng.choice(self.languages)
        tokens = self.min_len * (self.max_len / self.min_len) ** rng.random()
        return long_example(Values(rng, language, "train", self.pools), int(tokens * _CHARS_PER_TOKEN[language]))


@dataclass(frozen=True, kw_only=True)
class JoinedTexts:
    """`data.stream.Source`: a corpus's documents behind each other as documents of T tokens that see all of it."""

    cuttable: ClassVar[bool] = False
    texts: Texts
    document_len: int

    def pieces(self, chunk: int, num_tokens: int) -> list[Piece]:
        """As many whole documents as come nearest to `num_tokens`."""
        count = round(num_tokens / self.document_len)
        if not count:
            return []
        found = self.texts.pieces(chunk, count * self.document_len)
        joined = Piece(
            np.concatenate([piece.inputs for piece in found]),
            np.concatenate([piece.targets for piece in found]),
            np.concatenate([piece.privileges for piece in found]),
        )
        return [joined.cut(i * self.document_len, (i + 1) * self.document_len) for i in range(count)]
