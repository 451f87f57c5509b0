"""The one loop on a sharing decoder: everything learns, a stopped run goes on; and noise on shared blocks alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.compress.quantize.fake import FakeLinear, faked
from smelt.core.quantization import Scheme, WeightFormat
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.distill.hidden import HiddenMatch, HiddenTerms
from smelt.train.distill.objective import Distillation
from smelt.train.loop import Run, Stage
from smelt.train.optim import Optimizer, orthogonalize
from smelt.train.teachers.online import DecoderTeacher
from tests.model.test_sharing import ADJACENT, LOOP, SHARING, sharing
from tests.tiny import random_tensors, tiny_config
from tests.train.runs import Counting, furthest, weights

RESIDUES = "gemma3-loop-residue-entries"


def run(
    folder: Path, *, steps: int = 12, model: Decoder | None = None, parallel: Any = "replicate", **changes: Any
) -> Run:
    torch.set_num_threads(1)
    if model is None:
        model = Decoder(SHARING[RESIDUES])
        model.init_weights(0)
    config = TrainConfig(
        schedule=ScheduleConfig(total_steps=steps, warmup_steps=2),
        optimizer=OptimizerConfig(adam_lr=1e-2),
        device="cpu",
        checkpoint_s=1e9,
        log_every=1,
        parallel=parallel,
    )
    fields = {"stages": [Stage(name="only", stream=Counting())], "on_report": lambda _: None}
    return Run(model=model, config=config, folder=folder, **(fields | changes))


def test_everything_learns_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    whole, cut = run(tmp_path / "whole"), run(tmp_path / "cut")
    before = {name: parameter.detach().clone() for name, parameter in whole.model.named_parameters()}
    whole.train()
    cut.train(stop_after=5)
    again = run(tmp_path / "cut")
    again.train()
    assert furthest(weights(whole), weights(again)) == 0.0
    after = weights(whole)
    assert after.keys() == SHARING[RESIDUES].tensor_shapes().keys()
    assert all(not torch.equal(before[name], after[name]) for name in after)
    result = whole.result()
    assert result.model.layers[3].mlp.up_proj.weight is result.model.layers[1].mlp.up_proj.weight


def test_distillation_draws_a_sharing_student_to_its_teacher(tmp_path: Path) -> None:
    """Logits and the outputs of the layers that run, at the ends of groups."""
    config = tiny_config("gemma3_text", num_layers=len(LOOP))
    teacher = Decoder.from_tensors(config, random_tensors(config, 3))
    losses: list[float] = []
    student = Decoder(SHARING[RESIDUES])
    student.init_weights(0)
    hidden = HiddenTerms(HiddenMatch(pairs=((3, 3), (4, 4)), weight=0.1), student, teacher)
    stage = Stage(name="distil", stream=Counting(), objective=Distillation(DecoderTeacher(teacher, 96), hidden=hidden))
    job = run(tmp_path, steps=20, model=student, stages=[stage], on_report=lambda report: losses.append(report.loss))
    job.train()
    assert losses[-1] < 0.8 * losses[0]


def test_steps_of_low_rank_factors_are_as_long_as_those_of_matrices() -> None:
    """A tall matrix takes steps of (rows / cols)^0.5; the product of two factors would take them twice over."""
    rows, cols, rank = 64, 16, 4
    shapes = {"x.layers.0.up_proj.weight": (rows, cols), "x.layers.0.up_residue.expand": (rows, rank)}
    parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    config = OptimizerConfig(muon_lr=0.1, weight_decay=0.0, clip_norm=1e9, momentum=0.0)
    optimizer = Optimizer(parameters.items(), config)
    gradients = {n: torch.randn(s, generator=torch.Generator().manual_seed(1)) for n, s in shapes.items()}
    steps = {name: orthogonalize(gradient[None])[0] for name, gradient in gradients.items()}
    optimizer.step({name: gradient.clone() for name, gradient in gradients.items()}, 1.0, 1)
    for name, factor in (("x.layers.0.up_proj.weight", 2.0), ("x.layers.0.up_residue.expand", 1.0)):
        torch.testing.assert_close(parameters[name].detach(), -0.1 * factor * steps[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("homes", [ADJACENT, LOOP])
def test_noise_falls_on_shared_blocks_alone_and_once_a_step(homes: tuple[int | None, ...]) -> None:
    """A stored matrix has one error, the same in every layer that uses it; other matrices are rounded."""
    config = sharing("llama", homes, rank=2)
    model = Decoder.from_tensors(config, random_tensors(config, 1))
    scheme = Scheme(weights=WeightFormat(bits=4, group_size=16))
    made = faked(model, scheme, noise="shared")
    shared = {home for home in homes if home is not None}
    for i in range(config.num_layers):
        for stem in ("self_attn.q_proj", "mlp.down_proj"):
            module = made.get_submodule(f"model.layers.{i}.{stem}")
            assert isinstance(module, FakeLinear)
            home = made.get_submodule(f"model.layers.{config.home(i)}.{stem}")
            assert isinstance(home, FakeLinear)
            assert module.weight is home.weight
            noisy = config.home(i) in shared
            assert (module.matrix.noise_seed is not None) == noisy
            found = module.matrix(module.weight)
            assert torch.equal(found, home.matrix(home.weight))
            steps = len(np.unique(np.round(found.detach().numpy()[0, :16], 6)))
            assert steps <= 16 if not noisy else steps > 12
            made.moment.step += 1
            assert torch.equal(module.matrix(module.weight), found) != noisy
            made.moment.step -= 1
    residue = made.get_submodule("model.layers.1.mlp.up_residue")
    assert torch.equal(residue.expand, model.get_submodule("model.layers.1.mlp.up_residue").expand)
    ids = torch.arange(2, 20)[None]
    made(ids).square().mean().backward()
    grads = [parameter.grad for parameter in made.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    away = (made(ids) - model(ids)).norm() / model(ids).norm()
    assert 0.01 < away < 1.0


def test_a_sharded_run_keeps_a_shared_matrix_in_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process is enough to see it: sharded by layers, a matrix of two of them would be cut twice."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found = {}
        for parallel in ("replicate", "shard"):
            job = run(tmp_path / parallel, steps=3, parallel=parallel)
            job.train()
            found[parallel] = weights(job)
            assert len(job.layout.sharded) == (len(found[parallel]) if parallel == "shard" else 0)
    finally:
        torch.distributed.destroy_process_group()
    assert furthest(found["replicate"], found["shard"]) < 1e-6
