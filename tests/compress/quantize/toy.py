"""A small model that knows something, and text to hold it against: what quantization does to noise says little."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from smelt.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from smelt.compress.calibration import Calibration
from smelt.compress.stage import Material, Work
from smelt.core.decoder import DecoderConfig, Family
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from tests.tiny import tiny_config

VOCAB_SIZE = 96
_SUCCESSORS = 4


def rows_of_text(num_rows: int, row_len: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A second-order Markov chain: a token, and whether the one before was odd, leave four successors."""
    table = np.random.default_rng(0).integers(2, VOCAB_SIZE, (VOCAB_SIZE, 2, _SUCCESSORS))
    rng = np.random.default_rng((1, seed))
    rows = rng.integers(2, VOCAB_SIZE, (num_rows, row_len))
    choices = rng.choice(_SUCCESSORS, (num_rows, row_len), p=[0.7, 0.15, 0.1, 0.05])
    for t in range(2, row_len):
        rows[:, t] = table[rows[:, t - 1], rows[:, t - 2] % 2, choices[:, t]]
    return rows


def batch_of_text(num_rows: int, row_len: int, seed: int) -> Batch:
    rows = rows_of_text(num_rows, row_len + 1, seed)
    return Batch(rows[:, :-1].copy(), rows[:, 1:].copy())


@cache
def trained(config: DecoderConfig, steps: int) -> Decoder:
    """The same weights in every test of a run."""
    torch.manual_seed(0)
    model = Decoder(config)
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01, betas=(0.9, 0.95))
    for step in range(steps):
        batch = batch_of_text(16, 48, 10_000 + step)
        logits = model(torch.from_numpy(batch.inputs))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 20) * (1.0 - step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def toy_config(family: Family = "gemma3_text", **changes: Any) -> DecoderConfig:
    """64 wide, so that groups of 32 divide every matrix."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2}
    scale = {"embedding_scale": 8.0} if family == "gemma3_text" else {}
    return tiny_config(family, **(sizes | scale | changes))


def toy_folder(path: Path, config: DecoderConfig, steps: int = 40) -> Checkpoint:
    """A folder with a tokenizer's file to carry along (its content is not looked at)."""
    model = trained(config, steps)
    save_checkpoint(path, config, model.tensors(), files={"tokenizer_config.json": b"{}", "card.json": b"{}"})
    return open_checkpoint(path)


def material(rows: int = 16) -> Material:
    calibration = tuple(batch_of_text(4, 48, seed) for seed in range(rows // 4))
    held_out = tuple(batch_of_text(4, 48, 500 + seed) for seed in range(4))
    return Material(
        calibration=Calibration(source="a chain", digest=f"{rows}", batches=calibration),
        held_out=held_out,
        held_out_bytes=sum(batch.num_learned for batch in held_out) * 2,
        stream=_no_stream,
        digest="toy",
    )


def work(folder: Path, source: Checkpoint, **changes: Any) -> Work:
    fields = {"material": material(), "say": lambda _: None, "stopping": threading.Event()}
    return Work(out=folder / "out", scratch=folder / "scratch", teacher=source, **(fields | changes))


def _no_stream(seed: int) -> Any:
    raise AssertionError("quantization learns from no stream")
