"""Conversations as token ids, and the batch that training consumes. Shapes: B rows, T tokens.

`data.stream` makes batches of conversations and running text; `data.packing` puts them into rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from smelt.chat.renderer import Renderer
from smelt.data.example import Example
from smelt.data.tasks.mixture import Mixture

if TYPE_CHECKING:
    from numpy.typing import NDArray

ExampleAt = Callable[[int], Example]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as ids; loss_mask[i] is 1 where token i is the assistant's, privileges[i] says whose it is."""

    ids: list[int]
    loss_mask: bytes
    privileges: bytes = b""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to learn: `inputs` [B, T], and `targets` [B, T], the next token where it is learned, else -100.

    segment_ids [B, T]: the index of a token's document in its row, 0, 1, ... from left to right without gaps, and
    -1 for padding, which stands at the end; None: one document a row, padding (if any) at the end and not learned.
    privileges [B, T]: a `core.messages.Privilege` value per input token (padding: 0); None: not used.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    segment_ids: NDArray[np.int32] | None = None
    privileges: NDArray[np.uint8] | None = None

    @property
    def num_learned(self) -> int:
        """Targets that count."""
        return int((self.targets >= 0).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens without padding, where `segment_ids` tell them apart; else all places."""
        return self.inputs.size if self.segment_ids is None else int((self.segment_ids >= 0).sum())


def encode(renderer: Renderer, example: Example) -> Encoded:
    """The conversation through the one template there is."""
    rendered = renderer.render(example.messages, tools=example.tools, response_format=example.response_format)
    return Encoded(rendered.ids, rendered.loss_mask, rendered.privileges)


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Example i of a stream: with probability `share` a record of one of `sources`, else one of the mixture's."""

    mixture: Mixture
    seed: int
    sources: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    share: float = 0.0

    def __call__(self, index: int) -> Example:
        """The same example for the same index, always."""
        rng = random.Random(f"source/{self.seed}/{index}")
        names = sorted(name for name, records in self.sources.items() if records)
        if names and rng.random() < self.share:
            records = self.sources[names[rng.randrange(len(names))]]
            return records[rng.randrange(len(records))]
        return self.mixture.example(self.seed, index)


def mixed(
    mixture: Mixture, seed: int, sources: Mapping[str, Sequence[Example]] | None = None, share: float = 0.0
) -> ExampleAt:
    """`Mixed` of public records and generated examples."""
    return Mixed(mixture=mixture, seed=seed, sources=sources or {}, share=share)
