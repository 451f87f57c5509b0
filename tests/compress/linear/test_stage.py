"""The stage linearise: what it learns, what its parts are worth, what it says, and where it refuses."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from smelt.compress.chain.store import artifact_of
from smelt.compress.linear.measure import without
from smelt.compress.linear.stage import Linearise
from smelt.compress.quantize.rtn import rounded
from smelt.compress.stage import Progress
from smelt.core.decoder import LinearConfig
from smelt.core.errors import InvalidRequestError, TrainingStoppedError
from smelt.core.quantization import Scheme
from smelt.model.decoder import Decoder
from tests.compress.linear import toy
from tests.tiny import random_tensors, tiny_config

BOTH = Linearise(layers=(0, 1), window=4, feature_dim=48, steps=150, lr=5e-2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return toy.source(tmp_path_factory.mktemp("toy") / "source")


@pytest.fixture(scope="module")
def made(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, dict[str, Any]]:
    work = toy.work(tmp_path_factory.mktemp("made"), source)
    facts = BOTH.run(source, work)
    return open_checkpoint(work.out), facts


def opened(checkpoint: Checkpoint) -> Decoder:
    return Decoder.from_tensors(checkpoint.config, checkpoint.tensors).eval()


def test_transfer_takes_nine_tenths_of_the_error_and_touches_nothing_else(
    source: Checkpoint, made: tuple[Checkpoint, dict[str, Any]]
) -> None:
    """Of the layer that recalls; the other one, whose attention the toy hardly needs, is harder to imitate."""
    result, facts = made
    errors = facts["errors"]
    assert set(errors) == {"0", "1"} and facts["layers"] == [0, 1]
    for layer, times in (("0", 10), ("1", 3)):
        for measure in ("mse", "relative"):
            assert errors[layer]["before"][measure] > times * errors[layer]["after"][measure], errors
    for name in source.tensors:
        np.testing.assert_array_equal(result.tensors[name], source.tensors[name])
    assert (result.folder / "tokenizer.json").read_bytes() == b"{}"
    assert all(layer.linear == BOTH.linear for layer in result.config.layers)
    assert facts["parameters"] == {"before": source.config.num_parameters, "after": result.config.num_parameters}
    assert json.loads(json.dumps(facts)) == facts


def test_each_part_does_its_work(source: Checkpoint, made: tuple[Checkpoint, dict[str, Any]]) -> None:
    """The component test: without the linear part facts are guessed, without the window text is."""
    result, facts = made
    model, whole = opened(result), toy.scores(toy.trained())
    assert whole[0] > 0.99
    recalled, nats = toy.scores(model)
    assert recalled > 0.9 and nats < whole[1] + 0.1
    with without(model, "linear"):
        bare = toy.scores(model)
    assert bare[0] < 0.4 and bare[1] < whole[1] + 0.4
    with without(model, "window"):
        assert toy.scores(model)[1] > whole[1] + 1.0
    assert toy.scores(model) == (recalled, nats), "switched on again"
    bits = facts["held_out_bpb"]
    assert bits["after"] < 1.1 * bits["before"] < 1.5 * bits["after"] < bits["without_linear"]
    assert bits["without_window"] > 1.5 * bits["after"]
    assert not any("bypassed" in warning for warning in facts["warnings"])


def test_facts_about_memory_and_recall(source: Checkpoint, made: tuple[Checkpoint, dict[str, Any]]) -> None:
    result, facts = made
    assert facts["memory"]["kv_bytes_per_token"] == {"before": source.config.kv_bytes_per_token, "after": 0}
    assert facts["memory"]["state_bytes"] == {"before": 0, "after": result.config.state_bytes}
    even = facts["memory"]["break_even_tokens"]
    assert (even - 1) * source.config.kv_bytes_per_token < result.config.state_bytes
    assert even * source.config.kv_bytes_per_token >= result.config.state_bytes
    assert even == 54 and not any("memory is saved" in warning for warning in facts["warnings"]), "the context is 64"
    assert any("native core" in warning for warning in facts["warnings"])
    assert any("0 of 2 layers attend by softmax" in warning for warning in facts["warnings"])
    recall = facts["recall"]
    assert recall["distances"] == [4, 8, 32] and recall["chance"] == [0.5, 0.25, 0.125]
    assert {"before", "after", "without_linear", "without_window"} <= set(recall)


def test_a_part_that_does_nothing_is_told(source: Checkpoint, tmp_path: Path) -> None:
    """A window that holds every row: what is behind it was never asked."""
    said: list[str] = []
    stage = dataclasses.replace(BOTH, window=40, steps=1)
    facts = stage.run(source, toy.work(tmp_path, source, say=said.append))
    assert any("bypassed" in warning for warning in facts["warnings"])
    assert any("no held-out row is longer than the window of 40" in warning for warning in facts["warnings"])
    assert any("from 90 tokens on, and the context is 64" in warning for warning in facts["warnings"])
    assert all(f"linearise: {warning}" in said for warning in facts["warnings"])
    assert facts["errors"]["0"]["before"]["relative"] < 1e-9, "softmax in the window is the source itself"


@pytest.mark.slow
def test_the_delta_rule_learns_as_well(source: Checkpoint, tmp_path: Path) -> None:
    work = toy.work(tmp_path, source)
    facts = dataclasses.replace(BOTH, kind="gated delta", feature_dim=24, steps=100).run(source, work)
    model = opened(open_checkpoint(work.out))
    errors = facts["errors"]
    assert all(errors[i]["before"]["mse"] > 2 * errors[i]["after"]["mse"] for i in errors)
    recalled, _ = toy.scores(model)
    with without(model, "linear"):
        assert toy.scores(model)[0] < 0.4 < 0.6 < recalled
    assert "without_window" not in facts["held_out_bpb"]


def test_stopped_and_called_again_it_makes_the_same_bytes(source: Checkpoint, tmp_path: Path) -> None:
    stage = dataclasses.replace(BOTH, steps=8, layers=None)
    stage.run(source, toy.work(tmp_path / "whole", source))
    stopping = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.done >= 3:
            stopping.set()

    with pytest.raises(TrainingStoppedError):
        stage.run(source, toy.work(tmp_path / "pieces", source, stopping=stopping, on_progress=stop))
    assert not (tmp_path / "pieces" / "out").exists()
    seen: list[int] = []
    stage.run(source, toy.work(tmp_path / "pieces", source, on_progress=lambda p: seen.append(p.done)))
    assert seen[0] > 3
    whole, pieces = (artifact_of(tmp_path / name / "out") for name in ("whole", "pieces"))
    assert whole.hash == pieces.hash
    layers = open_checkpoint(tmp_path / "whole" / "out").config.layers
    assert [layer.linear is not None for layer in layers] == [True, False], "not the last quarter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (0, 2)}, "sought 0 to 1, found 2"),
        ({"layers": (1, 1)}, "different layers"),
        ({"layers": ()}, "one at least"),
        ({"window": 0}, "sought 1 or more of each"),
        ({"layers": None, "keep": 0.9}, "no layer is left to become linear"),
        ({"layers": None, "keep": 1.0}, "0 to below 1"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(
    source: Checkpoint, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        dataclasses.replace(BOTH, **changes).run(source, toy.work(tmp_path, source))
    assert not (tmp_path / "out").exists()


def test_sources_that_cannot_become_linear_are_refused(made: tuple[Checkpoint, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="layer 0 is linear already"):
        BOTH.run(made[0], toy.work(tmp_path, made[0]))
    gemma = tiny_config("gemma3_text")
    save_checkpoint(tmp_path / "gemma", gemma, random_tensors(gemma))
    slides = open_checkpoint(tmp_path / "gemma")
    with pytest.raises(InvalidRequestError, match="layer 0 slides over 8 tokens"):
        BOTH.run(slides, toy.work(tmp_path, slides))
    plain = tiny_config("llama")
    codes = rounded(plain, random_tensors(plain), Scheme())
    save_checkpoint(tmp_path / "few", plain, random_tensors(plain), quantized=codes, scheme=Scheme())
    few = open_checkpoint(tmp_path / "few")
    with pytest.raises(InvalidRequestError, match="linearise before quantizing"):
        BOTH.run(few, toy.work(tmp_path, few))
    with pytest.raises(InvalidRequestError, match="at least 1"):
        Linearise(steps=0)


def test_a_model_that_shares_matrices_becomes_linear_too(tmp_path: Path) -> None:
    base = tiny_config("qwen2", num_layers=4, vocab_size=toy.VOCAB, context_len=64)
    layers = tuple(dataclasses.replace(x, weights=0 if i == 1 else None) for i, x in enumerate(base.layers))
    config = dataclasses.replace(base, layers=layers)
    save_checkpoint(tmp_path / "shared", config, random_tensors(config))
    shared = open_checkpoint(tmp_path / "shared")
    facts = Linearise(window=4, feature_dim=8, steps=3, layers=(0, 1)).run(shared, toy.work(tmp_path, shared))
    made = open_checkpoint(tmp_path / "out").config
    assert made.layers[1].weights == 0 and made.layers[1].linear == LinearConfig(window=4, feature_dim=8)
    assert facts["memory"]["kv_bytes_per_token"]["after"] * 2 == facts["memory"]["kv_bytes_per_token"]["before"]
