"""Examples to batches of token ids, in an order that depends on the seed and nothing else.

A stream is a pure function of the chunk number: a chunk of examples is rendered, sorted by length and cut into
batches of rows of like length, padded on the right, so that no row holds two documents and causal attention
never sees padding. Where training stopped is two integers; going on from there gives the same batches.
Shapes: B rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smelt.chat.house import HouseRenderer
from smelt.data.example import Example
from smelt.data.tasks.mixture import Mixture

if TYPE_CHECKING:
    from numpy.typing import NDArray

ExampleAt = Callable[[int], Example]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as ids; weights[i] is what token i counts in the loss, 0 where it is not the assistant's."""

    ids: list[int]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to learn: `inputs` [B, T], and `targets` [B, T], the next token where it is learned, else -100.

    weights [B, T]: what each target counts in the loss, 0 where nothing is learned; None: every target counts one.
    segment_ids [B, T]: the index of a token's document in its row, 0, 1, ... from left to right without gaps, and
    -1 for padding, which stands at the end; None: one document a row, padding (if any) at the end and not learned.
    privileges [B, T]: a `core.messages.Privilege` value per input token (padding: 0); None: not used.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    segment_ids: NDArray[np.int32] | None = None
    privileges: NDArray[np.uint8] | None = None

    @property
    def total_weight(self) -> float:
        """What the loss is divided by: the number of learned targets where each counts one."""
        return float(self.target_weights.sum())

    @property
    def target_weights(self) -> NDArray[np.float32]:
        """[B, T]: `weights`, or ones where something is learned."""
        return (self.targets >= 0).astype(np.float32) if self.weights is None else self.weights


def encode(renderer: HouseRenderer, example: Example, decision_weight: float = 1.0) -> Encoded:
    """The conversation through the one template there is.

    The first token of an assistant's turn decides what kind of turn it is (a call, or which words); it is one of
    some thirty tokens of an answer and counts `decision_weight` times.
    """
    rendered = renderer.render(example.messages, tools=example.tools, response_format=example.response_format)
    weights = np.frombuffer(rendered.loss_mask, dtype=np.uint8).astype(np.float32)
    weights[np.diff(weights, prepend=0.0) > 0] = decision_weight
    return Encoded(rendered.ids, weights)


def collate(rows: Sequence[Encoded], pad_id: int, multiple: int = 16) -> Batch:
    """Rows padded to the longest, its length rounded up to `multiple`."""
    longest = max(len(row.ids) for row in rows) - 1
    width = -(-longest // multiple) * multiple
    inputs = np.full((len(rows), width), pad_id, dtype=np.int64)
    targets = np.full((len(rows), width), -100, dtype=np.int64)
    weights = np.zeros((len(rows), width), dtype=np.float32)
    for i, row in enumerate(rows):
        ids, last = np.array(row.ids), len(row.ids) - 1
        inputs[i, :last] = ids[:-1]
        targets[i, :last] = np.where(row.weights[1:] > 0, ids[1:], -100)
        weights[i, :last] = row.weights[1:]
    return Batch(inputs, targets, weights)


@dataclass(frozen=True, kw_only=True)
class BatchStream:
    """Batches of about `batch_tokens` tokens (padding included), chunk by chunk.

    Examples longer than `max_len` tokens are left out. `example_at(i)` must always give the same example for i.
    """

    example_at: ExampleAt
    renderer: HouseRenderer
    pad_id: int
    batch_tokens: int
    max_len: int
    seed: int
    chunk_examples: int = 512
    decision_weight: float = 1.0

    def chunk(self, number: int) -> list[Batch]:
        """Chunk `number` (0, 1, ...) as batches in their order."""
        first = number * self.chunk_examples
        rows = [
            encode(self.renderer, self.example_at(first + i), self.decision_weight) for i in range(self.chunk_examples)
        ]
        rows = sorted((row for row in rows if len(row.ids) <= self.max_len), key=lambda row: len(row.ids))
        groups: list[list[Encoded]] = [[]]
        for row in rows:
            if groups[-1] and len(row.ids) * (len(groups[-1]) + 1) > self.batch_tokens:
                groups.append([])
            groups[-1].append(row)
        batches = [collate(group, self.pad_id) for group in groups if group]
        random.Random(f"{self.seed}/{number}").shuffle(batches)
        return batches


def mixed(
    mixture: Mixture, seed: int, sources: Mapping[str, Sequence[Example]] | None = None, share: float = 0.0
) -> ExampleAt:
    """Example i of a stream: with probability `share` a record of one of `sources`, else a generated one."""
    names = sorted(name for name in sources or {} if (sources or {})[name])

    def example_at(index: int) -> Example:
        rng = random.Random(f"source/{seed}/{index}")
        if names and sources is not None and rng.random() < share:
            records = sources[names[rng.randrange(len(names))]]
            return records[rng.randrange(len(records))]
        return mixture.example(seed, index)

    return example_at
