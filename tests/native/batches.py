"""StepBatches and runners for tests, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smelt.core.decoder import DecoderConfig
from smelt.core.step import StepBatch
from smelt.native import NativeRunner
from tests.tiny import random_tensors

BLOCK_SIZE = 16


@dataclass(kw_only=True)
class Chunk:
    """New tokens of one sequence, and how to sample after them."""

    ids: Sequence[int]
    first: int = 0
    table: Sequence[int] = ()
    sample: bool = False
    score: bool = False
    next_id: int = -1  # successor of the last token
    temperature: float = 0.0
    top_p: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seed: int = 0
    draw: int = 0
    top_k: int = -1
    bias: dict[int, float] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    mask: NDArray[np.bool_] | None = None


def make_batch(chunks: Sequence[Chunk], vocab_size: int) -> StepBatch:
    """The StepBatch of these chunks. A table left out is (0, 1, ...)."""

    def floats(name: str) -> NDArray[np.float32]:
        return np.array([getattr(chunk, name) for chunk in chunks], np.float32)

    def offsets(lengths: Sequence[int]) -> NDArray[np.int32]:
        return np.cumsum([0, *lengths]).astype(np.int32)

    def flat(values: Sequence[Any], dtype: type) -> NDArray[Any]:
        return np.array([x for part in values for x in part], dtype)

    tables = [list(c.table) or list(range(-(-(c.first + len(c.ids)) // BLOCK_SIZE))) for c in chunks]
    width = max(len(table) for table in tables)
    masked = [i for i, chunk in enumerate(chunks) if chunk.mask is not None]
    masks = np.zeros((len(masked), -(-vocab_size // 32)), np.uint32)
    for row, i in enumerate(masked):
        bits = np.zeros(masks.shape[1] * 32, np.bool_)
        bits[:vocab_size] = chunks[i].mask
        masks[row] = np.packbits(bits, bitorder="little").view("<u4")
    return StepBatch(
        token_ids=flat([c.ids for c in chunks], np.int32),
        starts=offsets([len(c.ids) for c in chunks]),
        next_ids=flat([[*c.ids[1:], c.next_id] if c.score else [-1] * len(c.ids) for c in chunks], np.int32),
        first_positions=np.array([c.first for c in chunks], np.int32),
        block_tables=np.array([table + [-1] * (width - len(table)) for table in tables], np.int32),
        sample=np.array([c.sample for c in chunks], np.uint8),
        score=np.array([c.score for c in chunks], np.uint8),
        temperatures=floats("temperature"),
        top_ps=floats("top_p"),
        presence_penalties=floats("presence"),
        frequency_penalties=floats("frequency"),
        seeds=np.array([c.seed for c in chunks], np.uint64),
        draws=np.array([c.draw for c in chunks], np.uint64),
        top_k=np.array([c.top_k for c in chunks], np.int32),
        bias_starts=offsets([len(c.bias) for c in chunks]),
        bias_ids=flat([c.bias.keys() for c in chunks], np.int32),
        bias_values=flat([c.bias.values() for c in chunks], np.float32),
        count_starts=offsets([len(c.counts) for c in chunks]),
        count_ids=flat([c.counts.keys() for c in chunks], np.int32),
        counts=flat([c.counts.values() for c in chunks], np.int32),
        mask_rows=np.array([masked.index(i) if i in masked else -1 for i in range(len(chunks))], np.int32),
        masks=masks,
        privileges=flat([[2] * len(c.ids) for c in chunks], np.uint8),
    )


def make_runner(config: DecoderConfig, *, seed: int = 0, spread: float = 1.0, **options: Any) -> NativeRunner:
    """A runner over random weights."""
    options = {"weights": "fp32", "num_blocks": 32, "block_size": BLOCK_SIZE, "num_threads": 1} | options
    return NativeRunner(config, random_tensors(config, seed, spread=spread), **options)


def prompt(config: DecoderConfig, length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return [int(t) for t in np.random.default_rng(seed).integers(0, config.vocab_size, length)]


def logits_by_chunks(
    runner: NativeRunner, ids: Sequence[int], sizes: Sequence[int], table: Sequence[int] = ()
) -> NDArray[np.float32]:
    """Logits of every token of `ids`, computed in chunks of these sizes (the last repeats)."""
    rows, first, index = [], 0, 0
    while first < len(ids):
        size = sizes[min(index, len(sizes) - 1)]
        chunk = Chunk(ids=ids[first : first + size], first=first, table=table)
        rows.append(runner.logits(make_batch([chunk], runner.vocab_size)))
        first, index = first + size, index + 1
    return np.concatenate(rows)
