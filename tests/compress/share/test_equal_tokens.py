"""What sharing buys and costs, on a toy language trained from scratch for equally many tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from smelt.core.decoder import DecoderConfig
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.loop import Run, Stage
from smelt.train.objectives import mean_loss
from tests.model.test_sharing import ADJACENT, sharing
from tests.tiny import tiny_config

VOCAB_SIZE = 64
STEPS = 600


class Facts:
    """Each pair of tokens has a successor of its own, followed four times in five: 4,096 facts for the matrices."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.table = np.random.default_rng(0).integers(0, VOCAB_SIZE, (VOCAB_SIZE, VOCAB_SIZE))

    def chunk(self, number: int) -> list[Batch]:
        rng = np.random.default_rng((self.seed, number))
        rows = rng.integers(0, VOCAB_SIZE, (32, 33))
        follows = rng.random(rows.shape) < 0.8
        for t in range(2, rows.shape[1]):
            rows[:, t] = np.where(follows[:, t], self.table[rows[:, t - 2], rows[:, t - 1]], rows[:, t])
        return [Batch(rows[:, :-1], rows[:, 1:])]


def held_out_loss(folder: Path, config: DecoderConfig) -> float:
    """Nats a token after STEPS steps of 1,024 tokens."""
    torch.set_num_threads(1)
    model = Decoder(config)
    model.init_weights(0)
    settings = TrainConfig(
        schedule=ScheduleConfig(total_steps=STEPS, warmup_steps=20),
        optimizer=OptimizerConfig(adam_lr=1e-2),
        device="cpu",
        checkpoint_s=1e9,
        log_every=100,
    )
    stages = [Stage(name="only", stream=Facts(1))]
    run = Run(model=model, stages=stages, config=settings, folder=folder, on_report=lambda _: None)
    run.train()
    held_out = [batch for number in range(8) for batch in Facts(2).chunk(number)]
    return mean_loss(run.result(), held_out, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sharing_loses_to_twice_the_parameters_on_equal_tokens(tmp_path: Path) -> None:
    """Two stored layers run twice each, against two layers and against four: what sharing buys is bytes.

    Whether it beats as many parameters run once (MobileLLM: a little) depends on the task and the length of training;
    here it does not, and is printed only.
    """
    small = {"vocab_size": VOCAB_SIZE, "tie_embeddings": True}
    shared = dataclasses.replace(sharing("llama", ADJACENT), **small)
    configs = {
        "N": tiny_config("llama", num_layers=2, **small),
        "N shared": shared,
        "2N": tiny_config("llama", num_layers=4, **small),
    }
    found = {name: held_out_loss(tmp_path / name, config) for name, config in configs.items()}
    for name, loss in found.items():
        print(f"{name}: {configs[name].num_parameters} parameters, {loss:.4f} nats a token")  # noqa: T201
    assert configs["N shared"].num_parameters < 1.01 * configs["N"].num_parameters
    assert found["2N"] < found["N shared"] - 0.02
