"""A toy that needs both: facts from far behind (recall), and the token before (text by an order-2 chain).

A row shows six facts (key and value in one token), then text, then asks for each fact's value.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from smelt.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from smelt.compress.calibration import Calibration
from smelt.compress.stage import Material, Work
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig
from smelt.train.objectives import CrossEntropy
from smelt.train.optim import Optimizer
from tests.tiny import tiny_config

KEYS, VALUES, SHOWN, TEXT = 8, 4, 6, 12
FACT = 2
QUESTION = FACT + KEYS * VALUES
ANSWER = QUESTION + KEYS
WORD = ANSWER + VALUES
VOCAB = WORD + 12
CPU = torch.device("cpu")


def rows(seed: int, num: int = 16) -> Batch:
    """The same language for every seed."""
    rng = np.random.default_rng(seed)
    follows = np.random.default_rng(0).integers(WORD, VOCAB, (4, 6))
    ids = np.zeros((num, SHOWN + TEXT + 2 * SHOWN), np.int64)
    learned = np.zeros(ids.shape, bool)
    keys = rng.permuted(np.tile(np.arange(KEYS), (num, 1)), axis=1)[:, :SHOWN]
    values = rng.integers(0, VALUES, (num, SHOWN))
    ids[:, :SHOWN] = FACT + keys * VALUES + values
    text = rng.integers(WORD, VOCAB, (num, TEXT))
    for t in range(2, TEXT):
        text[:, t] = np.where(rng.random(num) < 0.9, follows[text[:, t - 1] % 4, text[:, t - 2] % 6], text[:, t])
    ids[:, SHOWN : SHOWN + TEXT], learned[:, SHOWN + 2 : SHOWN + TEXT] = text, True
    order = rng.permuted(np.tile(np.arange(SHOWN), (num, 1)), axis=1)
    ids[:, SHOWN + TEXT :: 2] = QUESTION + np.take_along_axis(keys, order, 1)
    ids[:, SHOWN + TEXT + 1 :: 2] = ANSWER + np.take_along_axis(values, order, 1)
    learned[:, SHOWN + TEXT + 1 :: 2] = True
    return Batch(ids[:, :-1], np.where(learned, ids, -100)[:, 1:])


@torch.no_grad()
def scores(model: Decoder) -> tuple[float, float]:
    """Share of facts recalled (chance is a quarter), and nats a token of the text."""
    batch = rows(10**6, 64)
    logits, targets = model(torch.from_numpy(batch.inputs)), torch.from_numpy(batch.targets)
    answers, words = (targets >= ANSWER) & (targets < WORD), targets >= WORD
    right = (logits.argmax(-1) == targets)[answers]
    return float(right.double().mean()), float(cross_entropy(logits[words], targets[words]))


@cache
def trained() -> Decoder:
    """Two layers that recall every fact; about three seconds."""
    config = tiny_config(
        "llama", vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_layers=2, context_len=64, pad_id=0
    )
    model = Decoder(config)
    model.init_weights(0)
    optimizer = Optimizer(model.named_parameters(), OptimizerConfig(adam_lr=6e-3, weight_decay=0.0))
    objective, steps = CrossEntropy(), 250
    for step in range(steps):
        found = objective(model, rows(step), CPU)
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(found.total / found.count, parameters)
        scale = min(1.0, (step + 1) / 20, (steps - step) / 100)
        optimizer.step(dict(zip(names, gradients, strict=True)), scale, step + 1)
    return model.eval()


def source(path: Path) -> Checkpoint:
    """The toy as a folder, with a file that must travel."""
    model = trained()
    save_checkpoint(path, model.config, model.tensors(), files={"tokenizer.json": b"{}"})
    return open_checkpoint(path)


class Rows:
    """The language as a stream."""

    def chunk(self, number: int) -> list[Batch]:
        return [rows(5000 + number)]


def work(path: Path, source: Checkpoint, **changes: Any) -> Work:
    """Where a stage works on the toy's language; text that stands for two bytes a learned token."""
    held_out = [rows(10**6 + 1)]
    material = Material(
        calibration=Calibration(source="the toy", digest="c" * 8, batches=(rows(10**6 + 2, 8),)),
        held_out=held_out,
        held_out_bytes=2 * sum(batch.num_learned for batch in held_out),
        stream=lambda seed: Rows(),
        digest="toy",
    )
    (path / "scratch").mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {"out": path / "out", "scratch": path / "scratch", "material": material}
    return Work(**({**fields, "teacher": source, "say": lambda _: None} | changes))
