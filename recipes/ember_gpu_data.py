"""The stages of the accelerator's run: ember's streams in rows of one length, made ahead by several processes.

Rows of one shape throughout, so that the layers are compiled once. Conversations are made anew for every batch: one
core makes, renders and packs 0.49M tokens a second (measured on a Zen 3 core), so that a trainer of 1.5M a second
keeps 3 cores busy; 8 processes leave room for slower cores, and nothing has to be made before, kept or repeated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.ember_data import DIALOGUE_SHARE, LIMITS, Material, text_sources
from recipes.mixtures import COPYING, LONGER, SKILLS
from smelt.chat.house import HouseRenderer
from smelt.data.batches import Batch, mixed
from smelt.data.prefetch import Prefetched
from smelt.data.stream import Conversations, PackedStream, Source
from smelt.data.tasks.mixture import Mixture
from smelt.tokenizer import Tokenizer
from smelt.train.loop import Stage
from smelt.train.objectives import Objective
from smelt.train.recipe import Workshop

CHUNK_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Every batch: `rows` rows of `row_len` tokens. short_len: the longest conversation before the last stage."""

    rows: int = 16
    row_len: int = 4096
    short_len: int = 1024
    workers: int = 8


@dataclass(frozen=True, kw_only=True)
class Shares:
    """early_tokens: of copying alone, first. text: of the tokens then, running text; last_text: at the falling rate."""

    early_tokens: int
    text: float
    last_text: float


@dataclass(frozen=True)
class Even:
    """Batches of exactly `rows` rows: padding rows where there are fewer, the last ones left out where more."""

    stream: PackedStream

    def chunk(self, number: int) -> list[Batch]:
        """As the stream's."""
        return [even(batch, self.stream.rows, self.stream.pad_id) for batch in self.stream.chunk(number)]


def even(batch: Batch, rows: int, pad_id: int) -> Batch:
    """The batch with `rows` rows."""
    missing = rows - len(batch.inputs)
    if missing == 0 or batch.segment_ids is None:
        return batch
    below = ((0, max(0, missing)), (0, 0))
    return Batch(
        inputs=np.pad(batch.inputs, below, constant_values=pad_id)[:rows],
        targets=np.pad(batch.targets, below, constant_values=-100)[:rows],
        segment_ids=np.pad(batch.segment_ids, below, constant_values=-1)[:rows],
    )


def stages_of(
    material: Material,
    tokenizer: Tokenizer,
    shop: Workshop,
    objective: Objective,
    *,
    rows: Rows,
    shares: Shares,
    seed: int,
) -> list[Stage]:
    """Copying first, then everything short, then, while the rate falls, everything with longer texts."""
    renderer, pad_id = HouseRenderer(tokenizer), tokenizer.control_ids["<|pad|>"]

    def stream(mixture: Mixture, number: int, max_len: int, text: float, dialogues: float) -> Prefetched:
        known = dataclasses.replace(mixture, pools=material.pools, limits=LIMITS)
        example_at = mixed(known, seed + number, material.dialogues, dialogues)
        talk = Conversations(example_at=example_at, renderer=renderer, max_len=max_len)
        sources: list[tuple[Source, float]] = [(talk, 1.0 - text)]
        if material.corpus is not None and text > 0:
            sources += text_sources(material.corpus, tokenizer, text, seed + number, shop)
        packed = PackedStream(
            sources=sources,
            row_len=rows.row_len,
            rows=rows.rows,
            pad_id=pad_id,
            seed=seed + number,
            batches_per_chunk=math.ceil(CHUNK_ROWS / rows.rows),
        )
        return Prefetched(Even(packed), rows.workers)

    early = stream(COPYING, 1, rows.short_len, 0.0, 0.0)
    main = stream(SKILLS, 2, rows.short_len, shares.text, DIALOGUE_SHARE)
    last = stream(LONGER, 3, rows.row_len, shares.last_text, DIALOGUE_SHARE)
    return [
        Stage(name="copying", stream=early, objective=objective, until_tokens=shares.early_tokens),
        Stage(name="main", stream=main, objective=objective),
        Stage(name="last", stream=last, objective=objective, at_decay=True),
    ]


def end(stages: Sequence[Stage]) -> float:
    """End the processes behind the stages; returns the seconds the trainer waited for them."""
    streams = [stage.stream for stage in stages if isinstance(stage.stream, Prefetched)]
    for stream in streams:
        stream.close()
    return sum(stream.waited_s for stream in streams)
