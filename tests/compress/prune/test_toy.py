"""On a toy language learned in seconds: what Minitron claims, over three seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from smelt.compress.prune.importance import Importance, Shape, importance, kept_at, norm_gains
from smelt.compress.prune.scores import Scores, scores_of
from smelt.compress.prune.slice import Kept, sliced
from smelt.model.decoder import Decoder
from smelt.train.distill.objective import Distillation
from smelt.train.teachers.online import DecoderTeacher
from tests.compress.prune.toy import CPU, VOCAB, held_out, toy_batch, toy_config, train, trained

SEEDS = (0, 1, 2)
STEPS = 200

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def models() -> list[Decoder]:
    """A trained model a seed."""
    return [trained(toy_config(), STEPS, seed) for seed in SEEDS]


def calibrated(model: Decoder) -> Scores:
    parts = (scores_of(model, toy_batch(50_000 + i), CPU) for i in range(8))
    return sum(parts, Scores.nothing(model.config))


def loss_at(model: Decoder, kept: Kept, gains: dict[str, float] | None = None) -> float:
    return held_out(Decoder.from_tensors(*sliced(model.config, model.tensors(), kept, gains)).eval())


def by_magnitude(model: Decoder, active: Importance) -> Importance:
    """Neurons by the norm of their weights, channels by the norm of their embedding."""
    tensors = model.tensors()
    squares = [
        sum(
            np.square(tensors[f"model.layers.{i}.mlp.{slot}_proj.weight"].astype(np.float64)).sum(axis)
            for slot, axis in (("gate", 1), ("up", 1), ("down", 0))
        )
        for i in range(model.config.num_layers)
    ]
    hidden = np.square(tensors["model.embed_tokens.weight"].astype(np.float64)).sum(0)
    return replace(active, neurons=np.sqrt(np.stack(squares)), hidden=np.sqrt(hidden))


def at_random(active: Importance, seed: int) -> Importance:
    rng = np.random.default_rng(seed)
    return replace(active, neurons=rng.random(active.neurons.shape), hidden=rng.random(active.hidden.shape))


def test_activation_beats_magnitude_and_chance_at_a_quarter(models: list[Decoder]) -> None:
    """Neurons and hidden channels, mean rise of the loss over three seeds; repaired norms beat bare ones."""
    rises: dict[str, list[float]] = {}
    for seed, model in zip(SEEDS, models, strict=True):
        before, scores, whole = held_out(model), calibrated(model), Shape.of(model.config)
        active = importance(scores, model.config)
        ranks = {"activation": active, "magnitude": by_magnitude(model, active), "chance": at_random(active, seed)}
        ranks["outgoing"] = importance(scores, model.config, model.tensors())
        for name, found in ranks.items():
            neurons = kept_at(found, model.config, replace(whole, intermediate_size=96))
            hidden = kept_at(found, model.config, replace(whole, hidden_size=36))
            gains = norm_gains(scores, model.config, hidden.hidden)
            rises.setdefault(f"{name} neurons", []).append(loss_at(model, neurons) - before)
            rises.setdefault(f"{name} hidden", []).append(loss_at(model, hidden, gains) - before)
            rises.setdefault(f"{name} hidden, bare", []).append(loss_at(model, hidden) - before)
    mean = {name: float(np.mean(values)) for name, values in rises.items()}
    for axis in ("neurons", "hidden"):
        assert mean[f"activation {axis}"] < mean[f"magnitude {axis}"] < mean[f"chance {axis}"], mean
    assert mean["outgoing neurons"] < mean["magnitude neurons"]
    assert mean["activation hidden"] < mean["activation hidden, bare"]


@pytest.mark.parametrize("seed", SEEDS)
def test_pruned_and_distilled_beats_the_same_shape_from_scratch(models: list[Decoder], seed: int) -> None:
    """At equal steps and data: the whole claim. Most of what pruning lost comes back in a quarter of the steps."""
    teacher = models[seed]
    before, scores = held_out(teacher), calibrated(teacher)
    shape = replace(Shape.of(teacher.config), hidden_size=40, intermediate_size=88)
    kept = kept_at(importance(scores, teacher.config), teacher.config, shape)
    gains = norm_gains(scores, teacher.config, kept.hidden)
    student = Decoder.from_tensors(*sliced(teacher.config, teacher.tensors(), kept, gains))
    assert student.config.num_parameters < 0.75 * teacher.config.num_parameters
    pruned = held_out(student.eval())
    objective = Distillation(DecoderTeacher(teacher, VOCAB))
    repaired = held_out(train(student.train(), STEPS // 4, seed=50 + seed, objective=objective))
    scratch = held_out(train(fresh(student, seed), STEPS // 4, seed=50 + seed))
    told = f"teacher {before:.3f}, pruned {pruned:.3f}, repaired {repaired:.3f}, from scratch {scratch:.3f}"
    assert repaired < scratch - 0.1, told
    assert pruned - repaired > 0.75 * (pruned - before), told


def fresh(student: Decoder, seed: int) -> Decoder:
    """The student's shape with new weights."""
    model = Decoder(student.config)
    model.init_weights(seed)
    return model
