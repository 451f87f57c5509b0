"""The loop: it learns, goes on where it stopped to the bit, ends when it must, says why when it cannot go on."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smelt.core.errors import CheckpointError, TrainingError, TrainingStoppedError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig, ScheduleConfig
from smelt.train.loop import Stage, shape_of
from smelt.train.objectives import CrossEntropy, LossSum
from smelt.train.report import METRICS, Report
from smelt.train.schedule import Plan
from tests.tiny import tiny_config
from tests.train.runs import Counting, Uneven, first_gradients, furthest, tiny_run, uneven_run, weights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_fifty_steps_lower_the_loss(tmp_path: Path) -> None:
    tiny_run(tmp_path).train()
    lines = metrics(tmp_path)
    assert len(lines) == 50
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["scale"] < 0.1
    assert (tmp_path / "curves.csv").read_text().count("\n") == 51


def test_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole", steps=20, ema=0.9)
    whole.train()
    for steps in (7, 1):
        tiny_run(tmp_path / "pieces", steps=20, ema=0.9).train(stop_after=steps)
    last = tiny_run(tmp_path / "pieces", steps=20, ema=0.9)
    assert last.train().step == 20
    assert same(weights(whole), weights(last))
    assert same(whole.average.state, last.average.state)


def test_more_workers_change_no_bit_and_are_no_other_run(tmp_path: Path) -> None:
    alone = tiny_run(tmp_path / "1", workers=1, accumulate=3)
    alone.train(stop_after=6)
    tiny_run(tmp_path / "2", workers=2, accumulate=3).train(stop_after=4)
    both = tiny_run(tmp_path / "2", workers=1, accumulate=3, checkpoint_s=5.0)
    both.train(stop_after=2)
    assert same(weights(alone), weights(both))


@dataclass(frozen=True)
class Merged(Uneven):
    """All batches of a chunk as one, padded to the widest."""

    def chunk(self, number: int) -> list[Batch]:
        parts = super().chunk(number)
        width = max(part.inputs.shape[1] for part in parts)
        rows = [
            np.concatenate([np.pad(side, ((0, 0), (0, width - side.shape[1])), constant_values=fill) for side in sides])
            for sides, fill in (([p.inputs for p in parts], 0), ([p.targets for p in parts], -100))
        ]
        return [Batch(*rows)]


def test_accumulated_batches_equal_one_large_one(tmp_path: Path) -> None:
    """To 1e-6 of the mean gradient, though the batches have very different numbers of learned tokens."""
    pieces = uneven_run(tmp_path / "a")
    large = tiny_run(tmp_path / "b", stages=[Stage(name="only", stream=Merged())], steps=6)
    count = sum(batch.num_learned for batch in Uneven().chunk(0))
    assert furthest(first_gradients(pieces), first_gradients(large)) / count < 1e-6
    pieces.train()
    large.train()
    assert furthest(weights(pieces), weights(large)) < 1e-5
    assert [round(a["loss"], 5) for a in metrics(tmp_path / "a")] == [
        round(b["loss"], 5) for b in metrics(tmp_path / "b")
    ]


def test_recomputed_layers_give_the_same_gradients(tmp_path: Path) -> None:
    plain, again = (uneven_run(tmp_path, checkpoint_layers=on) for on in (False, True))
    assert furthest(first_gradients(plain), first_gradients(again)) < 1e-5


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny_run(tmp_path).train(stop_after=1)
    with pytest.raises(CheckpointError, match="another run"):
        tiny_run(tmp_path, seed=1).train(stop_after=1)
    other = [Stage(name="only", stream=Counting(), objective=CrossEntropy(first_weight=2.0))]
    with pytest.raises(CheckpointError, match="another run"):
        tiny_run(tmp_path, stages=other).train(stop_after=1)


def test_a_variant_that_a_later_version_adds_makes_no_other_run() -> None:
    """A new field of the decoder's configuration refused every checkpoint of runs of many hours."""
    config = tiny_config("gemma3_text", num_layers=2)
    told = shape_of(config)
    assert "num_privileges" not in told
    assert len(told["layers"]) == 2
    assert shape_of(replace(config, num_privileges=6)) == told | {"num_privileges": 6}
    windows = tuple(replace(layer, window=7) for layer in config.layers)
    assert shape_of(replace(config, layers=windows)) != told


def test_a_run_made_longer_before_its_decay_equals_one_that_was_as_long_from_the_start(tmp_path: Path) -> None:
    """One stage of constant rate can end in several models: the decay of a copy takes nothing from the run itself."""
    whole = tiny_run(tmp_path / "whole", steps=30)
    whole.train()
    tiny_run(tmp_path / "grown", steps=20).train(stop_after=10)
    grown = tiny_run(tmp_path / "grown", steps=30)
    assert grown.train().step == 30
    assert same(weights(whole), weights(grown))


def test_no_other_length_once_the_rate_falls(tmp_path: Path) -> None:
    tiny_run(tmp_path, steps=20).train(stop_after=14)  # it falls from step 12 on
    with pytest.raises(CheckpointError, match=r"falls from step 12 to 20 and would fall from 18 to 30"):
        tiny_run(tmp_path, steps=30).train(stop_after=1)
    tiny_run(tmp_path / "short", steps=40).train(stop_after=20)
    with pytest.raises(CheckpointError, match="would fall from 12 to 20"):
        tiny_run(tmp_path / "short", steps=20).train(stop_after=1)


def test_stages_follow_tokens_and_the_decay(tmp_path: Path) -> None:
    stages = [
        Stage(name="first", stream=Counting(1), until_tokens=5 * 64),
        Stage(name="second", stream=Counting(2)),
        Stage(name="third", stream=Counting(3), at_decay=True),
    ]
    schedule = ScheduleConfig(total_steps=20, warmup_steps=1, decay_share=0.5)
    reports: list[Report] = []
    tiny_run(tmp_path, stages=stages, schedule=schedule, on_report=reports.append).train()
    assert [report.stage for report in reports] == ["first"] * 5 + ["second"] * 5 + ["third"] * 10


def test_steps_taken_again_are_reported_once(tmp_path: Path) -> None:
    """A kill leaves lines of steps behind the last checkpoint, and perhaps half a line."""
    tiny_run(tmp_path).train(stop_after=3)
    with (tmp_path / METRICS).open("a") as file:
        file.write(json.dumps(metrics(tmp_path)[-1] | {"step": 4}) + "\n" + '{"step": 5, "lo')
    tiny_run(tmp_path).train(stop_after=2)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_asked_to_stop_it_ends_with_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    stopping = threading.Event()

    def third(report: Report) -> None:
        if report.step == 3:
            stopping.set()

    run = tiny_run(tmp_path, steps=6, on_report=third, stopping=stopping)
    with pytest.raises(TrainingStoppedError, match="after step 4"):
        run.train()
    assert tiny_run(tmp_path, steps=6).train().step == 6


# ---------------------------------------------------------------------------------------- what is no number


@dataclass(frozen=True)
class Breaking:
    """Cross-entropy whose value, or only its gradient, is no number at one batch."""

    at: bytes
    where: str
    name: str = "breaking"

    def __call__(self, model: Decoder, batch: Batch, device: torch.device) -> LossSum:
        found = CrossEntropy()(model, batch, device)
        if batch.inputs.tobytes() != self.at:
            return found
        total = found.total * torch.nan if self.where == "loss" else found.total + _Spoiled.apply(found.total)  # type: ignore[no-untyped-call]
        return LossSum(total, found.count)


class _Spoiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value * 0

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
        return upstream * torch.inf


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_no_number_stops_the_run_before_it_does_harm(tmp_path: Path, where: str) -> None:
    fifth = Counting().chunk(1)[1]  # three batches a chunk
    objective = Breaking(at=fifth.inputs.tobytes(), where=where)
    run = tiny_run(tmp_path, stages=[Stage(name="main", stream=Counting(), objective=objective)], checkpoint_s=0.0)
    with pytest.raises(TrainingError, match=r"step 5 .* batch 1 of chunk 1 of stage 'main'.*state-00000004"):
        run.train()
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000004"]
    good = tiny_run(tmp_path / "good")
    good.train(stop_after=4)
    assert same(weights(run), weights(good)), "the step that broke changed nothing"


# ------------------------------------------------------------------------------- averages, objectives' own parts


def test_the_average_is_that_of_the_weights(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, ema=0.5)
    sought = {name: tensor.clone() for name, tensor in weights(run).items()}
    for step in range(1, 5):
        run.train(stop_after=1)
        kept = min(0.5, (1 + step) / (10 + step))
        sought = {name: kept * sought[name] + (1 - kept) * tensor for name, tensor in weights(run).items()}
    found = dict(run.result(averaged=True).named_parameters())
    assert furthest({n: t.detach() for n, t in found.items()}, sought) < 1e-6
    assert furthest(weights(run), sought) > 1e-3
    with pytest.raises(TrainingError, match="ema"):
        tiny_run(tmp_path / "none").result(averaged=True)


class Projected(nn.Module):
    """An objective with a parameter of its own, and a further number to report."""

    name = "projected"

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, model: Decoder, batch: Batch, device: torch.device) -> LossSum:
        found = CrossEntropy()(model, batch, device)
        return LossSum(found.total * self.factor**2, found.count, {"twice": 2 * found.count})


def test_an_objectives_own_parameters_are_trained_and_checkpointed(tmp_path: Path) -> None:
    def made() -> tuple[Projected, Any]:
        objective = Projected()
        stages = [Stage(name=name, stream=Counting(), objective=objective) for name in ("one", "two")]
        return objective, tiny_run(tmp_path, stages=stages)

    objective, run = made()
    run.train(stop_after=3)
    assert float(objective.factor.detach()) < 0.99
    again, resumed = made()
    resumed.resume()
    assert torch.equal(again.factor, objective.factor)
    assert metrics(tmp_path)[-1]["logs"] == {"twice": 2.0}


def test_frozen_weights_stay(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    run.model.model.embed_tokens.weight.requires_grad_(False)
    again = type(run)(model=run.model, stages=run.stages, config=run.config, folder=tmp_path, on_report=print)
    before = {name: tensor.clone() for name, tensor in weights(again).items()}
    again.on_report = lambda report: None
    again.train(stop_after=2)
    changed = {name for name, tensor in weights(again).items() if not torch.equal(tensor, before[name])}
    assert changed == set(before) - {"model.embed_tokens.weight"}


# -------------------------------------------------------------------------------------------------- schedules


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


def test_a_step_follows_the_schedule(tmp_path: Path) -> None:
    """With a rate of zero nothing moves: the factor reaches both optimizers."""
    still = OptimizerConfig(muon_lr=0.0, adam_lr=0.0)
    run = tiny_run(tmp_path, optimizer=still)
    before = {name: tensor.clone() for name, tensor in weights(run).items()}
    run.train(stop_after=2)
    assert same(before, weights(run))
