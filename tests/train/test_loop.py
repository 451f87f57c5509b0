"""The loop: it learns, it goes on where it was killed to the bit, and it ends when it must."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from smelt.core.errors import CheckpointError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.loop import Report, Run, Stage
from smelt.train.schedule import Plan
from tests.tiny import tiny_config


@dataclass(frozen=True)
class Counting:
    """Rows that count up: token n is followed by n + 1."""

    seed: int = 0

    def chunk(self, number: int) -> list[Batch]:
        rng = np.random.default_rng((self.seed, number))
        starts = rng.integers(2, 60, size=(3, 4, 1))
        rows = starts + np.arange(17)
        return [batch_of(rows[i, :, :-1], rows[i, :, 1:]) for i in range(3)]


def batch_of(inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> Batch:
    return Batch(inputs, targets, (targets >= 0).astype(np.float32))


def run(folder: Path, **changes: Any) -> Run:
    torch.set_num_threads(1)
    reports: list[Report] = []
    model = Decoder(tiny_config("gemma3_text", num_layers=2))
    model.init_weights(0)
    fields: dict[str, Any] = {
        "schedule": ScheduleConfig(total_steps=50, warmup_steps=5),
        "optimizer": OptimizerConfig(adam_lr=1e-2),
        "log_every": 1,
        "checkpoint_s": 1e9,
    }
    stages = changes.pop("stages", [Stage(name="only", stream=Counting())])
    config = TrainConfig(**(fields | changes))
    found = Run(model=model, stages=stages, config=config, folder=folder, on_report=reports.append)
    found.reports = reports  # type: ignore[attr-defined]
    return found


def weights(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: parameter.data.clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_fifty_steps_lower_the_loss(tmp_path: Path) -> None:
    trained = run(tmp_path)
    trained.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 50
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["scale"] < 0.1


def test_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    whole.train()
    for steps in (7, 13, 1):
        run(tmp_path / "pieces").train(stop_after=steps)
    last = run(tmp_path / "pieces")
    position = last.train()
    assert position.step == 50
    assert same(weights(whole.model), weights(last.model))


def test_more_workers_change_no_bit(tmp_path: Path) -> None:
    alone, both = (run(tmp_path / str(n), workers=n, accumulate=3) for n in (1, 2))
    alone.train(stop_after=8)
    both.train(stop_after=8)
    assert same(weights(alone.model), weights(both.model))


def test_accumulated_batches_equal_one_large_one(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Merged(Counting):
        def chunk(self, number: int) -> list[Batch]:
            parts = super().chunk(number)
            return [batch_of(np.concatenate([p.inputs for p in parts]), np.concatenate([p.targets for p in parts]))]

    pieces = run(tmp_path / "a", accumulate=3)
    large = run(tmp_path / "b", stages=[Stage(name="only", stream=Merged())])
    pieces.train(stop_after=1)
    large.train(stop_after=1)
    for name, tensor in weights(pieces.model).items():
        assert torch.allclose(tensor, weights(large.model)[name], atol=2e-4)


def test_a_checkpoint_cut_short_is_ignored(tmp_path: Path) -> None:
    """A kill while writing leaves a staging folder; the run goes on from the last whole checkpoint."""
    run(tmp_path).train(stop_after=4)
    (tmp_path / ".staging-1").mkdir()
    (tmp_path / ".staging-1" / "state.safetensors").write_bytes(b"half")
    assert run(tmp_path).train(stop_after=1).step == 5
    assert [path.name for path in sorted(tmp_path.glob("state-*"))] == ["state-00000005"]


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path).train(stop_after=1)
    with pytest.raises(CheckpointError, match="another run"):
        run(tmp_path, seed=1).train(stop_after=1)


def test_stages_follow_tokens_and_the_decay(tmp_path: Path) -> None:
    stages = [
        Stage(name="first", stream=Counting(1), until_tokens=5 * 64),
        Stage(name="second", stream=Counting(2)),
        Stage(name="third", stream=Counting(3), at_decay=True),
    ]
    schedule = ScheduleConfig(total_steps=20, warmup_steps=1, decay_share=0.5)
    trained = run(tmp_path, stages=stages, schedule=schedule)
    trained.train()
    names = [report.stage for report in trained.reports]  # type: ignore[attr-defined]
    assert names == ["first"] * 5 + ["second"] * 5 + ["third"] * 10


def test_a_deadline_settles_the_decay_by_the_measured_rate() -> None:
    config = ScheduleConfig(total_steps=1, warmup_steps=0, decay_share=0.4, deadline_s=100.0)
    plan = Plan.of(config)
    plan.settle(config, 100, 50.0)
    assert not plan.settled
    assert plan.scale(config, 100) == 1.0
    plan.settle(config, 120, 60.0)
    assert plan.settled
    assert (plan.decay_start, plan.total_steps) == (120, 200)
    plan.settle(config, 150, 99.0)
    assert plan.total_steps == 200, "settled once"
    assert plan.scale(config, 160) == 0.5
    assert plan.scale(config, 200) == 0.0


def test_warm_up_constant_decay() -> None:
    config = ScheduleConfig(total_steps=100, warmup_steps=10, decay_share=0.5)
    plan = Plan.of(config)
    assert [round(plan.scale(config, step), 2) for step in (0, 4, 9, 30, 50, 75, 99)] == [0.1, 0.5, 1, 1, 1, 0.5, 0.02]
