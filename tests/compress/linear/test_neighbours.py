"""What the other stages, the trainer and the server make of a model with linear layers: handled, or refused by name."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress.chain.speed import SpeedSettings, measure_speed
from smelt.compress.chain.store import artifact_of
from smelt.compress.distil import Distil
from smelt.compress.export.plain import plain_of
from smelt.compress.linear.stage import Linearise
from smelt.compress.prune.shapes import Share as ShareOfParameters
from smelt.compress.prune.stage import Prune
from smelt.compress.quality import quality
from smelt.compress.quantize.few_bits import in_few_bits
from smelt.compress.quantize.fold import folds
from smelt.compress.quantize.ptq_stage import Quantize
from smelt.compress.share.stage import Repeat, Share
from smelt.compress.sparse.stage import Sparsify
from smelt.compress.stage import Progress, Work
from smelt.compress.words import changed, stage_of
from smelt.core.decoder import LinearConfig
from smelt.core.errors import InvalidRequestError, TrainingStoppedError, UnsupportedError
from smelt.core.quantization import Scheme, WeightFormat
from smelt.core.sampling import SamplingParams
from smelt.engine.torch_runner import TorchRunner
from smelt.generate.llm import LLM
from smelt.model.decoder import Decoder
from tests.compress.chain.fakes import material, run
from tests.model.test_linear_attention import linear_config
from tests.tiny import make_tiny_folder

HYBRID, DELTA = LinearConfig(window=4, feature_dim=8), LinearConfig(kind="gated delta", feature_dim=8)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def folder(path: Path, linear: LinearConfig) -> Checkpoint:
    layers = linear_config("llama", linear, num_layers=2).layers
    return open_checkpoint(make_tiny_folder(path, family="llama", layers=layers, hidden_size=32, intermediate_size=32))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return folder(tmp_path_factory.mktemp("hybrid") / "hybrid", HYBRID)


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return folder(tmp_path_factory.mktemp("delta") / "delta", DELTA)


def work(path: Path, source: Checkpoint, **changes: Any) -> Work:
    (path / "scratch").mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {"out": path / "out", "scratch": path / "scratch", "teacher": source}
    return Work(**({**fields, "material": material(source.config.vocab_size), "say": lambda _: None} | changes))


def kl(checkpoint: Checkpoint, teacher: Checkpoint) -> float:
    models = [Decoder.from_tensors(each.config, each.tensors) for each in (checkpoint, teacher)]
    return float(quality(models[0], models[1], material(teacher.config.vocab_size))["kl"]["value"])


@pytest.mark.parametrize(
    ("stage", "error", "message"),
    [
        (
            Prune(target=ShareOfParameters(of_parameters=0.8)),
            UnsupportedError,
            "before layers are shared or linearised",
        ),
        (Share(), InvalidRequestError, "no plain ones any more"),
        (Repeat(), InvalidRequestError, "no plain ones any more"),
    ],
    ids=["prune", "share", "repeat"],
)
def test_stages_that_know_plain_layers_alone_refuse(
    hybrid: Checkpoint, tmp_path: Path, stage: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stage.run(hybrid, work(tmp_path, hybrid))
    assert not (tmp_path / "out").exists()


def test_no_other_program_knows_such_a_model(hybrid: Checkpoint) -> None:
    with pytest.raises(UnsupportedError, match="linear attention"):
        plain_of(hybrid)


@pytest.mark.parametrize("kind", ["hybrid", "delta"])
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_quantizing_takes_the_matrices_and_leaves_the_maps(
    kind: str, method: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Checkpoint = request.getfixturevalue(kind)
    eight = WeightFormat(bits=8)
    Quantize(scheme=Scheme(weights=eight, head=eight), method=method).run(source, work(tmp_path, source))
    made = open_checkpoint(tmp_path / "out")
    assert made.config == source.config and made.scheme is not None
    for name in source.tensors:
        if ".mixer." in name:
            np.testing.assert_array_equal(made.tensors[name], source.tensors[name])
    assert all(f"model.layers.0.self_attn.{x}_proj.weight" in made.quantized for x in "qkvo")
    ids = torch.randint(5, 90, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = in_few_bits(made.config, made.tensors, made.quantized, made.scheme)(ids)
        sought = Decoder.from_tensors(source.config, source.tensors)(ids)
    assert float((found - sought).norm() / sought.norm()) < 0.05


def test_scales_move_past_no_norm_that_gates_read(hybrid: Checkpoint, delta: Checkpoint) -> None:
    assert [fold.maker for fold in folds(hybrid.config, 0)][0] == "input_layernorm"
    assert "input_layernorm" not in [fold.maker for fold in folds(delta.config, 0)]
    assert "input_layernorm" in [fold.maker for fold in folds(delta.config, 1)], "that layer attends by softmax"


def test_sparsity_walks_through(delta: Checkpoint, tmp_path: Path) -> None:
    facts = Sparsify(method="wanda").run(delta, work(tmp_path, delta))
    assert facts["zeros"] == pytest.approx(0.5, abs=0.01)
    assert not any(".mixer." in name for name in facts["sparsity"])


def test_distillation_repairs_it_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    """Linearise, then distil from the source, stopped half way: mixers learn with the rest, bytes are the same."""
    source = open_checkpoint(make_tiny_folder(tmp_path / "source", family="llama", num_layers=2, hidden_size=32))
    first = work(tmp_path / "linear", source)
    Linearise(layers=(0,), kind="gated delta", window=4, feature_dim=8, steps=4).run(source, first)
    linear = open_checkpoint(first.out)
    stage = Distil(steps=20, adam_lr=2e-3, muon_lr=5e-3)
    stage.run(linear, work(tmp_path / "whole", source))
    stopping = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.done >= 3:
            stopping.set()

    with pytest.raises(TrainingStoppedError):
        stage.run(linear, work(tmp_path / "pieces", source, stopping=stopping, on_progress=stop))
    stage.run(linear, work(tmp_path / "pieces", source))
    assert artifact_of(tmp_path / "whole" / "out").hash == artifact_of(tmp_path / "pieces" / "out").hash
    made = open_checkpoint(tmp_path / "whole" / "out")
    assert made.config == linear.config and kl(made, source) < 0.9 * kl(linear, source)
    for name in made.config.tensor_shapes():
        if ".mixer." in name:
            assert not np.array_equal(made.tensors[name], linear.tensors[name]), name


def test_the_folder_is_served_by_the_torch_runner(hybrid: Checkpoint) -> None:
    """Two requests with one prompt: the second finds the first's blocks and the states with them."""
    llm = LLM.load(hybrid.folder)
    try:
        assert isinstance(llm.runner, TorchRunner)
        prompt = "The quick brown fox jumps over the lazy dog. Please tell me the weather in Berlin today, thank you."
        params = SamplingParams(max_tokens=6, temperature=0.0)
        ids = llm.tokenizer.encode(prompt)
        answers = []
        for _ in range(2):
            prepared = llm.prepare_completion(prompt, params)
            answers.append([getattr(event, "text", None) for event in llm.events(prepared)])
        assert answers[0] == answers[1] and len(ids) > 16
        assert llm.stats()["cached_tokens"] >= 16
    finally:
        llm.close()


def test_the_word_makes_the_stage(hybrid: Checkpoint) -> None:
    stage = stage_of("linearise", hybrid.config)
    assert stage == Linearise()
    (other,) = changed([stage], ["linearise.kind=gated delta"])
    assert other == Linearise(kind="gated delta")
    (other,) = changed([stage], ["linearise.layers=0,2"])
    assert other == Linearise(layers=(0, 2))


def test_a_chain_goes_through_and_says_why_there_is_no_speed(tmp_path: Path) -> None:
    source = make_tiny_folder(tmp_path / "source", family="llama", num_layers=2, hidden_size=32)
    stage = Linearise(window=4, feature_dim=8, steps=2)
    outcome = run(source, tmp_path / "chain", stage, Distil(steps=2))
    made = open_checkpoint(outcome.result.folder)
    assert [layer.linear is not None for layer in made.config.layers] == [True, False]
    speed = measure_speed(outcome.result.folder, SpeedSettings(rounds=1))
    assert speed["decode_tok_s"] is None and "linear attention" in speed["reason"]
