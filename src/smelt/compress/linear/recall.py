"""Associative recall: keys and values shown once, then a key again; the model is to say its value.

What linear attention loses first, and what held-out text hardly shows. Ids are drawn, so nothing but the context can
help; a model that was never asked such things scores by what it has of copying (induction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from smelt.core.decoder import DecoderConfig
from smelt.core.messages import Privilege
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.objectives import batch_hidden

MOST_PAIRS = 8
LEAST_DISTANCE = 4  # two pairs


@dataclass(frozen=True, slots=True)
class Asked:
    """batch: rows that end with the key asked for, its value the one learned target. values: all shown, [rows, pairs].

    The right one is the first.
    """

    batch: Batch
    values: NDArray[np.int64]


def asked(config: DecoderConfig, distance: int, *, rows: int, seed: int) -> Asked:
    """Rows in which the key asked for stands `distance` tokens, four or more, before the question.

    A begin id where the model has one, the pair sought, up to seven others, then ids that are neither keys nor values.
    """
    rng = np.random.default_rng((seed, distance))
    special = {config.bos_id, config.pad_id, *config.eos_ids}
    free = np.array([i for i in range(config.vocab_size) if i not in special])
    pairs = max(2, min(MOST_PAIRS, distance // 2, (len(free) - 1) // 2))
    begin = [] if config.bos_id is None else [config.bos_id]
    inputs, values = [], []
    for _ in range(rows):
        ids = rng.permutation(free)
        shown, rest = ids[: 2 * pairs], ids[2 * pairs :]
        filler = rng.choice(rest, distance - 2 * pairs)
        inputs.append([*begin, *shown, *filler, shown[0]])
        values.append(shown[1::2])
    found = np.array(inputs, np.int64)
    targets = np.full_like(found, -100)
    targets[:, -1] = [row[0] for row in values]
    said = np.full(found.shape, Privilege.ASSISTANT, np.uint8)
    return Asked(Batch(found, targets, None, said), np.array(values, np.int64))


def distances_for(config: DecoderConfig, window: int) -> tuple[int, ...]:
    """Within the window, behind it, far behind it; those that fit the context."""
    most = config.context_len - 2
    return tuple(sorted({max(LEAST_DISTANCE, d) for d in (window // 2, 2 * window, 8 * window) if d <= most}))


@torch.no_grad()
def recall(model: Decoder, distances: Sequence[int], *, rows: int = 64, seed: int = 0) -> list[float]:
    """By distance the share of rows in which the right value is the likeliest of those shown; see `chance`."""
    device = next(model.parameters()).device
    found = []
    for distance in distances:
        question = asked(model.config, distance, rows=rows, seed=seed)
        logits = model.logits(batch_hidden(model, question.batch, device)[:, -1]).float().cpu()
        of_values = logits.gather(1, torch.from_numpy(question.values))
        right = of_values[:, 0] > of_values[:, 1:].amax(1)  # who finds all equal has recalled nothing
        found.append(float(right.double().mean()))
    return found


def chance(config: DecoderConfig, distances: Sequence[int]) -> list[float]:
    """What guessing among the values shown would score."""
    return [1 / asked(config, distance, rows=1, seed=0).values.shape[1] for distance in distances]
