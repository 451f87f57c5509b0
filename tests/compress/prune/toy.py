"""A toy language with structure, and a small decoder trained on it for seconds.

A document is a walk on a sparse order-2 chain of symbols in which every so often a span from the start is copied.
"""

from __future__ import annotations

import numpy as np
import torch

from smelt.core.decoder import DecoderConfig, Family
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.objectives import CrossEntropy, Objective, mean_loss
from tests.tiny import tiny_config

VOCAB = 48
LEN = 33
CPU = torch.device("cpu")


def toy_config(family: Family = "llama", **changes: object) -> DecoderConfig:
    """Three layers, wide enough that a quarter can go."""
    fields = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 128, "num_layers": 3, "context_len": 64}
    return tiny_config(family, **(fields | changes))


def toy_batch(seed: int, rows: int = 16) -> Batch:
    """Rows of the language; the language is the same for every seed."""
    rng = np.random.default_rng(seed)
    successors = np.random.default_rng(0).integers(2, VOCAB, (VOCAB, VOCAB, 3))
    ids = np.zeros((rows, LEN), dtype=np.int64)
    ids[:, :2] = rng.integers(2, VOCAB, (rows, 2))
    for t in range(2, LEN):
        pick = np.minimum(rng.geometric(0.7, rows) - 1, 2)
        ids[:, t] = successors[ids[:, t - 1] % 8, ids[:, t - 2] % 8, pick]
        copied = (t % 11) > 7
        if copied:
            ids[:, t] = ids[:, t - 7]
    return Batch(ids[:, :-1], ids[:, 1:])


def train(model: Decoder, steps: int, *, seed: int, objective: Objective | None = None, lr: float = 4e-3) -> Decoder:
    """Adam with a linear decay."""
    chosen = objective or CrossEntropy()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10) * (1 - step / steps)
        found = chosen(model, toy_batch(1000 * (seed + 1) + step), CPU)
        optimizer.zero_grad()
        (found.total / found.count).backward()
        optimizer.step()
    return model.eval()


def trained(config: DecoderConfig, steps: int, seed: int) -> Decoder:
    """A decoder from scratch."""
    model = Decoder(config)
    model.init_weights(seed)
    return train(model, steps, seed=seed)


def held_out(model: Decoder) -> float:
    """Nats a token."""
    return mean_loss(model, [toy_batch(10**6 + i, 32) for i in range(4)], CPU)
