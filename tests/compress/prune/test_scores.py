"""Scores count documents apart, pick what was planted, and add up in pieces."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from smelt.compress.prune.importance import Importance, Losses, Shape, importance, kept_at, kept_layers, norm_gains
from smelt.compress.prune.scores import Scores, norm_names, scores_of
from smelt.compress.prune.slice import Kept, sliced
from smelt.core.decoder import DecoderConfig, LayerConfig
from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from tests.tiny import random_tensors, tiny_config, variants

CPU = torch.device("cpu")
Tensors = dict[str, NDArray[np.float32]]


def documents(config: DecoderConfig, lengths: tuple[int, ...] = (5, 9, 7)) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(11)
    return [rng.integers(2, config.vocab_size, length) for length in lengths]


def packed(rows: list[list[NDArray[np.int64]]], width: int = 24) -> Batch:
    """Documents side by side, padding behind them."""
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    segments = np.full((len(rows), width), -1, dtype=np.int32)
    for r, row in enumerate(rows):
        start = 0
        for number, ids in enumerate(row):
            inputs[r, start : start + len(ids)] = ids
            segments[r, start : start + len(ids)] = number
            start += len(ids)
    return Batch(inputs, np.where(segments >= 0, inputs, -100), segments)


def same(one: Scores, other: Scores, rtol: float = 1e-4) -> None:
    for field in fields(Scores):
        if field.name != "num_batches":
            np.testing.assert_allclose(getattr(one, field.name), getattr(other, field.name), rtol=rtol, atol=1e-7)


def scored(config: DecoderConfig, tensors: Tensors, batch: Batch | None = None) -> Scores:
    model = Decoder.from_tensors(config, tensors).eval()
    return scores_of(model, batch or packed([documents(config)]), CPU)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3-yarn-biases"])
def test_packed_documents_score_as_they_do_alone(name: str) -> None:
    """However documents lie in rows, with whatever padding: the same sums, and they add up over batches."""
    config = variants()[name]
    tensors = random_tensors(config, seed=1)
    one, two, three = documents(config)
    together = scored(config, tensors, packed([[one, two, three]]))
    apart = [Batch(ids[None], ids[None]) for ids in (one, two, three)]
    same(together, sum((scored(config, tensors, batch) for batch in apart), Scores.nothing(config)))
    same(together, scored(config, tensors, packed([[one], [two, three]])))
    assert (together.num_documents, together.num_tokens) == (3, 21)


@torch.no_grad()
def test_the_sums_are_what_their_names_say() -> None:
    """The slow twin: one document, taken apart by hand."""
    config = tiny_config("llama")
    tensors = random_tensors(config, seed=1)
    model, ids = Decoder.from_tensors(config, tensors).eval(), documents(config)[0]
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[1]
    layer.mlp.down_proj.register_forward_pre_hook(lambda m, i: seen.update(neurons=i[0][0]))
    layer.register_forward_hook(lambda m, i, o: seen.update(before=i[0][0], after=o[0]))
    model.model.norm.register_forward_hook(lambda m, i, o: seen.update(norm_in=i[0][0], norm_out=o[0]))
    found = scores_of(model, Batch(ids[None], ids[None]), CPU)
    np.testing.assert_allclose(found.neurons[1], seen["neurons"].abs().mean(0).square().numpy(), rtol=1e-4)
    np.testing.assert_allclose(found.norms[-1], seen["norm_out"].abs().mean(0).square().numpy(), rtol=1e-4)
    cos = torch.cosine_similarity(seen["before"], seen["after"], dim=-1)
    np.testing.assert_allclose(found.layers[1], float((1 - cos).sum()), rtol=1e-4)
    inside = seen["norm_in"].square() / seen["norm_in"].square().mean(-1, keepdim=True)
    np.testing.assert_allclose(found.inside[-1], inside.sum(0).numpy(), rtol=1e-4)


def test_scores_survive_the_disk_to_the_bit(tmp_path: Path) -> None:
    config = tiny_config("gemma3_text")
    found = scored(config, random_tensors(config))
    found.save(tmp_path / "scores.npz")
    again = Scores.load(tmp_path / "scores.npz")
    assert all(np.array_equal(getattr(found, f.name), getattr(again, f.name)) for f in fields(Scores))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npz"]
    (tmp_path / "other.npz").write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=r"other\.npz holds no scores"):
        Scores.load(tmp_path / "other.npz")


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@torch.no_grad()
def test_planted_dead_neurons_are_found_and_go_unmissed(family: str) -> None:
    config = tiny_config(family)  # type: ignore[arg-type]
    tensors = random_tensors(config, seed=2)
    dead = {i: np.random.default_rng(i).choice(config.intermediate_size, 16, replace=False) for i in range(3)}
    for i, rows in dead.items():
        for slot in ("gate", "up"):
            tensors[f"model.layers.{i}.mlp.{slot}_proj.weight"][rows] = 0.0
    shape = replace(Shape.of(config), intermediate_size=config.intermediate_size - 16)
    kept = kept_at(importance(scored(config, tensors), config), config, shape)
    for i, rows in dead.items():
        assert set(range(config.intermediate_size)) - set(kept.neurons[i]) == set(rows)
    ids = torch.from_numpy(documents(config)[1])[None]
    found = Decoder.from_tensors(*sliced(config, tensors, kept)).eval()(ids)
    assert (found - Decoder.from_tensors(config, tensors).eval()(ids)).abs().max() < 1e-5


def test_a_loud_neuron_nobody_reads_fools_activity_and_not_its_variant() -> None:
    """Minitron's score is blind to the outgoing weight; times the norm of the reading column it is not."""
    config = tiny_config("llama")
    tensors = random_tensors(config, seed=2)
    loud = 7
    tensors["model.layers.1.mlp.up_proj.weight"][loud] *= 50.0
    tensors["model.layers.1.mlp.down_proj.weight"][:, loud] = 0.0
    scores = scored(config, tensors)
    plain, outgoing = importance(scores, config), importance(scores, config, tensors)
    assert plain.neurons[1].argmax() == loud
    assert outgoing.neurons[1].argmin() == loud and outgoing.neurons[1][loud] == 0.0


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@torch.no_grad()
def test_an_identity_layer_scores_zero_and_goes_first(family: str) -> None:
    config = tiny_config(family, num_layers=5)  # type: ignore[arg-type]
    tensors = random_tensors(config, seed=3)
    for slot in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.3.{slot}.weight"][:] = 0.0
    found = importance(scored(config, tensors), config)
    assert found.layers[3] < 1e-9 < found.layers[[0, 1, 2, 4]].min()
    kept = kept_at(found, config, replace(Shape.of(config), num_layers=4))
    assert kept.layers == (0, 1, 2, 4)
    ids = torch.from_numpy(documents(config)[1])[None]
    sought = Decoder.from_tensors(config, tensors).eval()(ids)
    assert (Decoder.from_tensors(*sliced(config, tensors, kept)).eval()(ids) - sought).abs().max() < 1e-5


def test_first_and_last_layers_stay_and_so_does_the_only_global_one() -> None:
    near, everything = LayerConfig(window=8, rope=1), LayerConfig()
    layers = (near, near, everything, near, near)
    worth = np.array([0.0, 3.0, 1.0, 2.0, 0.0])
    assert kept_layers(worth, layers, 4) == (0, 1, 2, 4)  # 3, as 2 is the last of its kind
    assert kept_layers(worth, layers, 3) == (0, 2, 4)
    assert kept_layers(worth, layers, 2) == (0, 4)
    assert kept_layers(worth, layers, 1) == (0,)
    assert kept_layers(worth, layers, 5) == (0, 1, 2, 3, 4)


def test_loud_groups_stay_with_their_best_heads() -> None:
    config = tiny_config("llama", num_heads=6, num_kv_heads=3)
    whole = Shape.of(config)
    heads = np.array([[1.0, 5.0, 1.0, 1.0, 4.0, 2.0]] * 3)
    found = Importance(neurons=np.ones((3, 64)), heads=heads, hidden=np.arange(48.0), layers=np.array([1.0, 2.0, 3.0]))
    kept = kept_at(found, config, replace(whole, num_kv_heads=2, heads_per_group=1, hidden_size=4))
    assert kept.groups == ((0, 2),) * 3
    assert kept.heads == ((1, 4),) * 3
    assert kept.hidden == (44, 45, 46, 47)


def test_losses_are_the_energy_that_goes() -> None:
    """Against a sum over what `kept_at` leaves out."""
    config = tiny_config("llama", num_heads=6, num_kv_heads=3, num_layers=4)
    rng = np.random.default_rng(0)
    found = Importance(
        neurons=rng.random((4, 64)), heads=rng.random((4, 6)), hidden=rng.random(48), layers=rng.random(4)
    )
    shape = Shape(num_layers=3, hidden_size=40, intermediate_size=50, num_kv_heads=2, heads_per_group=1)
    kept, lost = kept_at(found, config, shape), Losses(found, config).at(shape)

    def missing(worth: NDArray[np.float64], indices: tuple[int, ...]) -> float:
        return 1.0 - worth[list(indices)].sum() / worth.sum()

    rows = list(enumerate(kept.layers))
    assert lost.layers == pytest.approx(missing(found.layers, kept.layers))
    assert lost.hidden == pytest.approx(missing(found.hidden**2, kept.hidden))
    assert lost.neurons == pytest.approx(np.mean([missing(found.neurons[i] ** 2, kept.neurons[r]) for r, i in rows]))
    assert lost.heads == pytest.approx(np.mean([missing(found.heads[i] ** 2, kept.heads[r]) for r, i in rows]))
    whole = Losses(found, config).at(Shape.of(config))
    assert max(whole.layers, whole.hidden, whole.neurons, whole.heads) < 1e-12


@torch.no_grad()
def test_repaired_norms_keep_the_size_of_their_outputs() -> None:
    """Over the kept channels a repaired norm's output is, on average, as large as before."""
    config = tiny_config("llama")
    tensors = random_tensors(config, seed=5)
    tensors["model.embed_tokens.weight"][:, :30] *= 4.0  # what stays is louder than what goes
    scores = scored(config, tensors)
    hidden = tuple(range(30))
    gains = norm_gains(scores, config, hidden)
    assert set(gains) == set(norm_names(config)) and min(gains.values()) > 1.1
    kept = replace(Kept.everything(config), hidden=hidden)
    ids = torch.from_numpy(documents(config)[1])[None]
    sizes = []
    for model in (
        Decoder.from_tensors(config, tensors),
        Decoder.from_tensors(*sliced(config, tensors, kept, gains)),
        Decoder.from_tensors(*sliced(config, tensors, kept)),
    ):
        normed = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
        sizes.append(float(normed[..., :30].square().mean().sqrt()))
    assert abs(sizes[1] / sizes[0] - 1) < 0.02 < abs(sizes[2] / sizes[0] - 1)
    assert norm_gains(scores, config, tuple(range(48))) == pytest.approx(
        dict.fromkeys(norm_names(config), 1.0), rel=1e-5
    )


def test_a_shape_larger_than_the_source_is_refused() -> None:
    config = tiny_config("llama")
    found = importance(scored(config, random_tensors(config)), config)
    with pytest.raises(InvalidRequestError, match=r"hidden_size is 64; sought 1\.\.48"):
        kept_at(found, config, replace(Shape.of(config), hidden_size=64))
