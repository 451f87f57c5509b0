"""The stages "sparsify" and "retrain-sparse": exact sparsity, honest facts, the same bits after a stop."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress.sparse import sizes
from smelt.compress.sparse.gradual import Growth, Mask, RetrainSparse
from smelt.compress.sparse.masks import Pattern
from smelt.compress.sparse.stage import Sparsify, chosen_weights
from smelt.compress.stage import Progress, Work
from smelt.core.decoder import MATRICES, Family, LayerConfig
from smelt.core.errors import InvalidRequestError, TrainingStoppedError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.objectives import mean_loss
from tests.compress.quantize.toy import batch_of_text, material, toy_config, toy_folder, work
from tests.tiny import make_tiny_folder

FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_ROUND_S", 1e-4)


class Chain:
    """`train.loop.Stream` of the toy's text."""

    def chunk(self, number: int) -> list[Batch]:
        return [batch_of_text(4, 32, 1000 + 4 * number + i) for i in range(4)]


def matrices(made: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
    return {name: made.tensors[name] for name in made.tensors if name.endswith("_proj.weight")}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_rows_lose_their_exact_share_in_every_family_and_the_rest_of_the_folder_stays(
    family: Family, method: Any, tmp_path: Path
) -> None:
    source = toy_folder(tmp_path / "toy", toy_config(family), steps=0)
    facts = Sparsify(method=method, share=0.4, scope="row").run(source, work(tmp_path, source))
    made = open_checkpoint(tmp_path / "out")
    for name, matrix in matrices(made).items():
        assert ((matrix == 0).sum(1) == round(0.4 * matrix.shape[1])).all(), name
        assert facts["sparsity"][name] == pytest.approx(round(0.4 * matrix.shape[1]) / matrix.shape[1])
    for name in made.tensors:
        if not name.endswith("_proj.weight"):
            assert np.array_equal(made.tensors[name], source.tensors[name])
    assert made.config == source.config
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()
    json.dumps(facts)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_patterns_are_exact_and_only_the_chosen_matrices_are_touched(method: Any, tmp_path: Path) -> None:
    source = toy_folder(tmp_path / "toy", toy_config("qwen3"), steps=0)
    stage = Sparsify(method=method, pattern="2:4", matrices=("mlp.up", "mlp.down"))
    facts = stage.run(source, work(tmp_path, source))
    for name, matrix in matrices(open_checkpoint(tmp_path / "out")).items():
        if ".mlp.up" in name or ".mlp.down" in name:
            assert ((matrix.reshape(-1, 4) == 0).sum(1) == 2).all()
        else:
            assert np.array_equal(matrix, source.tensors[name])
    assert set(facts["sparsity"].values()) == {0.5} and len(facts["sparsity"]) == 4


def test_global_magnitude_and_a_threshold_take_what_is_small_wherever_it_is(tmp_path: Path) -> None:
    source = toy_folder(tmp_path / "toy", toy_config("llama"), steps=0)
    everything = np.concatenate([np.abs(matrix).ravel() for matrix in matrices(source).values()])
    facts = Sparsify(method="magnitude", share=0.3, scope="global").run(source, work(tmp_path, source))
    assert facts["zeros"] == pytest.approx(round(0.3 * everything.size) / everything.size, abs=1e-12)
    assert len(set(facts["sparsity"].values())) > 1
    facts = Sparsify(method="threshold", threshold=0.05).run(source, work(tmp_path, source))
    assert facts["zeros"] == pytest.approx((everything < 0.05).mean(), abs=1e-12)


def test_facts_say_that_the_folder_is_no_smaller_and_what_other_forms_would_take(tmp_path: Path) -> None:
    source = toy_folder(tmp_path / "toy", toy_config("llama"), steps=0)
    facts = Sparsify(method="magnitude", pattern="2:4").run(source, work(tmp_path, source))
    weights = [path / "model.safetensors" for path in (tmp_path / "toy", tmp_path / "out")]
    assert weights[0].stat().st_size == weights[1].stat().st_size
    before, after = facts["bytes_before"], facts["bytes_after"]
    assert before["dense"] == after["dense"] == 4 * sum(matrix.size for matrix in matrices(source).values())
    assert after["pattern"] <= after["bitmap"] < after["csr"] < after["dense"]
    assert after["zip"] < before["zip"]
    assert before["bitmap"] > before["dense"]  # a form for zeros costs where there are none
    assert "no smaller and no faster" in facts["size_and_speed"]
    assert all(facts["product_us"][name] > 0 for name in ("dense_before", "dense_after", "csr_after"))


def test_sizes_are_those_of_the_bytes_themselves() -> None:
    matrix = np.array([[0, 1, 0, 2], [3, 0, 0, 0]], np.float32)
    found = sizes.stored_bytes([matrix, matrix], "BF16", Pattern(2, 4))
    zipped = len(zlib.compress((matrix.view(np.uint32) >> 16).astype("<u2").tobytes(), 6))
    assert found == {
        "dense": 32,
        "zip": 2 * zipped,
        "csr": 2 * (3 * 2 + 3 * 2 + 3 * 4),
        "bitmap": 2 * (3 * 2 + 1),
        "pattern": 2 * (2 * 2 * 2 + 1),
    }
    assert sizes.sparsity({"m": matrix}) == {"m": 5 / 8}


def test_what_a_walk_needs_is_told_before_it_starts() -> None:
    config = toy_config("llama")
    by_size, wanda, repair = (Sparsify(method=m).needs(config) for m in ("magnitude", "wanda", "sparsegpt"))
    assert 3 * 4 * config.num_parameters == by_size.memory_bytes < wanda.memory_bytes < repair.memory_bytes
    wide = dataclasses.replace(config, hidden_size=1 << 14)  # what enters a layer is above 2 GiB: on the disk
    assert Sparsify().needs(wide).disk_bytes - 2 * 4 * wide.num_parameters == 4 * (1 << 14) * 128 * 2048


def test_shared_matrices_are_dropped_once(tmp_path: Path) -> None:
    layers = (LayerConfig(), LayerConfig(weights=0))
    source = open_checkpoint(make_tiny_folder(tmp_path / "toy", family="llama", layers=layers))
    facts = Sparsify(method="sparsegpt", share=0.5).run(source, work(tmp_path, source))
    assert len(facts["sparsity"]) == 7 and set(facts["sparsity"].values()) == {0.5}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"share": 1.0}, "share is 1.0; sought 0 to below 1"),
        ({"pattern": "2:5"}, "whole groups of 5"),
        ({"method": "luck"}, "method is 'luck'; sought magnitude"),
        ({"method": "threshold"}, "a threshold is above 0"),
        ({"scope": "head"}, "scope is 'head'"),
        ({"matrices": ("mlp.gate", "lm_head")}, "matrices: sought some of self_attn.q"),
        ({"damping": 0.0}, "damping is 0.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(
    settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    source = toy_folder(tmp_path / "toy", toy_config("llama"), steps=0)
    with pytest.raises(InvalidRequestError, match=told):
        Sparsify(**settings).run(source, work(tmp_path, source))
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_stopped_stage_goes_on_and_ends_with_the_same_bytes(method: Any, tmp_path: Path) -> None:
    source = toy_folder(tmp_path / "toy", toy_config("qwen2"), steps=0)
    stage = Sparsify(method=method, share=0.5)
    stage.run(source, work(tmp_path / "whole", source))
    cut = work(tmp_path / "cut", source)

    def stop(progress: Progress) -> None:
        if progress.done == 6:
            cut.stopping.set()

    with pytest.raises(TrainingStoppedError):
        stage.run(source, dataclasses.replace(cut, on_progress=stop))
    assert not cut.out.exists()
    told: list[int] = []
    again = work(tmp_path / "cut", source, on_progress=lambda progress: told.append(progress.done))
    stage.run(source, again)
    assert told == [5, 6, 7, 8]
    one, other = ((tmp_path / name / "out" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == other


def test_the_share_grows_fast_first_and_stands_in_the_end() -> None:
    growth = Growth(final=0.8, length=100, every=10)
    assert growth.at(0) == 0.0
    assert growth.at(10) == growth.at(19) == pytest.approx(0.8 * (1 - 0.9**3))
    assert growth.at(50) == pytest.approx(0.8 * (1 - 0.5**3))
    assert growth.at(100) == growth.at(101) == growth.at(5000) == 0.8
    steps = [growth.at(step) for step in range(0, 101, 10)]
    assert all(b > a for a, b in zip(steps, steps[1:], strict=False))
    assert steps[1] - steps[0] > steps[10] - steps[9]


def test_a_mask_is_the_zeros_themselves_and_does_the_same_twice() -> None:
    model = Decoder(toy_config("llama"))
    model.init_weights(0)
    weights = chosen_weights(model, MATRICES)
    mask = Mask(weights, growth=Growth(final=0.5, length=4, every=2))
    mask(0)
    for step in range(1, 6):
        with torch.no_grad():
            for weight in weights.values():
                weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        mask(step)
        held = {name: weight.clone() for name, weight in weights.items()}
        mask(step)
        Mask(weights, growth=Growth(final=0.5, length=4, every=2))(step)  # what a resumed run begins with
        assert all(torch.equal(held[name], weight) for name, weight in weights.items())
        expected = Growth(final=0.5, length=4, every=2).at(step)
        assert all(int((weight == 0).sum()) == round(expected * weight.numel()) for weight in weights.values())


def retraining(folder: Path, source: Checkpoint, **changes: Any) -> Work:
    given = dataclasses.replace(material(), stream=lambda _: Chain())
    return work(folder, source, material=given, **changes)


def small_folder(path: Path) -> Checkpoint:
    """A chain's model with a tokenizer, which distillation compares."""
    return open_checkpoint(
        make_tiny_folder(path, family="llama", num_layers=1, hidden_size=32, intermediate_size=32, tie_embeddings=True)
    )


@pytest.mark.parametrize("settings", [{"share": 0.6, "every": 2}, {"pattern": "1:4"}])
def test_retraining_under_a_growing_mask_stops_and_goes_on_to_the_same_bytes(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    source = small_folder(tmp_path / "toy")
    stage = RetrainSparse(steps=10, growing=0.6, device="cpu", checkpoint_s=0.0, **settings)
    facts = stage.run(source, retraining(tmp_path / "whole", source))
    cut = retraining(tmp_path / "cut", source)

    def stop(progress: Progress) -> None:
        if progress.done == 5:  # between two raises of the share, while it grows
            cut.stopping.set()

    with pytest.raises(TrainingStoppedError):
        stage.run(source, dataclasses.replace(cut, on_progress=stop))
    stage.run(source, retraining(tmp_path / "cut", source))
    one, other = ((tmp_path / name / "out" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == other
    for name, matrix in matrices(open_checkpoint(tmp_path / "whole" / "out")).items():
        if "pattern" in settings:
            assert ((matrix.reshape(-1, 4) == 0).sum(1) == 3).all()
        else:
            assert int((matrix == 0).sum()) == round(0.6 * matrix.size), name
    assert facts["claims"] == ["bytes", "speed"] and "no smaller" in facts["size_and_speed"]


def test_retraining_what_was_sparsified_keeps_its_zeros_and_learns(tmp_path: Path) -> None:
    source = small_folder(tmp_path / "toy")
    Sparsify(method="magnitude", share=0.7, scope="row").run(source, work(tmp_path / "first", source))
    sparse = open_checkpoint(tmp_path / "first" / "out")
    given = retraining(tmp_path / "second", source)
    facts = RetrainSparse(steps=30, batch=2, device="cpu", muon_lr=0.02, adam_lr=3e-3).run(sparse, given)
    made = open_checkpoint(tmp_path / "second" / "out")
    for name, matrix in matrices(made).items():
        assert np.array_equal(matrix == 0, sparse.tensors[name] == 0)
        assert not np.array_equal(matrix, sparse.tensors[name])
    assert facts["last_loss"] < 0.8 * facts["first_loss"]
    assert facts["claims"] == ["quality"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"share": 0.5, "pattern": "2:4"}, "found both"),
        ({"share": 0.5, "growing": 0.0}, "growing above 0"),
        ({"share": 0.5, "scope": "all"}, "scope is 'all'"),
    ],
)
def test_retraining_refuses_settings_that_do_not_go_together(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        RetrainSparse(**settings)


@pytest.mark.slow
def test_at_half_the_weights_inputs_beat_size_and_repair_beats_both(tmp_path: Path) -> None:
    """The order of the published tables: dense < SparseGPT < Wanda < magnitude, each row losing as much.

    Sizes compared over whole matrices do better than row by row and are about as good as Wanda where no input is louder
    than the others, as here; SparseGPT beats them too. On this toy the gaps are 0.12, 0.17, 0.19 (0.17) nats.
    """
    source = toy_folder(tmp_path / "toy", toy_config("llama"), steps=400)
    held_out = [batch_of_text(16, 48, 700 + seed) for seed in range(8)]

    def loss(made: Checkpoint) -> float:
        return mean_loss(Decoder.from_tensors(made.config, made.tensors), held_out, torch.device("cpu"))

    found: dict[str, float] = {}
    for method, scope in (("magnitude", "matrix"), ("magnitude", "row"), ("wanda", "row"), ("sparsegpt", "row")):
        given = work(tmp_path / f"{method} {scope}", source, material=material(64))
        Sparsify(method=method, scope=scope, share=0.5).run(source, given)
        found[f"{method} {scope}"] = loss(open_checkpoint(given.out)) - loss(source)
    assert 0 < found["sparsegpt row"] < found["wanda row"] < found["magnitude row"], found
    assert found["sparsegpt row"] < 0.85 * found["magnitude matrix"], found
