"""Small decoders and batches for the tests of distillation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.teachers.online import DecoderTeacher
from tests.tiny import random_tensors, tiny_config

CPU = torch.device("cpu")
VOCAB = 96


def decoder(seed: int = 0, *, spread: float = 1.5, **changes: Any) -> Decoder:
    """Random, sure of itself, two layers."""
    config = tiny_config("qwen3", **({"num_layers": 2, "tie_embeddings": True} | changes))
    return Decoder.from_tensors(config, random_tensors(config, seed, spread=spread))


def teacher(seed: int = 1, vocab_len: int = VOCAB, **changes: Any) -> DecoderTeacher:
    return DecoderTeacher(decoder(seed, **changes), vocab_len)


def batch(seed: int = 0, rows: int = 3, length: int = 12, *, packed: bool = False, learned: float = 0.6) -> Batch:
    """Random ids; about `learned` of the targets count; packed: two documents a row and two padded places."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, VOCAB, (rows, length + 1))
    targets = np.where(rng.random((rows, length)) < learned, ids[:, 1:], -100)
    segments = None
    if packed:
        segments = np.zeros((rows, length), np.int32)
        segments[:, length // 2 :] = 1
        segments[:, -2:] = -1
        targets[:, length // 2 - 1] = targets[:, -2:] = -100
    return Batch(ids[:, :-1], targets, segment_ids=segments)


def gradients(loss: torch.Tensor, model: Decoder) -> torch.Tensor:
    """All of them, flat."""
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([one.reshape(-1) for one in found])
