"""The stage "quantize": what it writes is what it measured, a kill costs a layer, and a collapse is told."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress.quantize import rtn
from smelt.compress.quantize.calibrated import Calibrated
from smelt.compress.quantize.few_bits import in_few_bits
from smelt.compress.quantize.integer import integer_decoder
from smelt.compress.quantize.ptq_stage import Quantize
from smelt.compress.stage import Progress
from smelt.compress.walk import walk
from smelt.core.decoder import DecoderConfig, Family, LayerConfig
from smelt.core.errors import InvalidRequestError, TrainingStoppedError
from smelt.core.quantization import ActivationFormat, Scheme, WeightFormat
from smelt.model.decoder import Decoder
from smelt.train.objectives import mean_loss
from tests.compress.quantize.toy import batch_of_text, material, toy_config, toy_folder, trained, work
from tests.tiny import random_tensors, tiny_config

_INT4 = Scheme(weights=WeightFormat(bits=4, group_size=16))
_EIGHT_BY_EIGHT = Scheme(activations=ActivationFormat(dynamic=False, symmetric=False, observer="percentile"))
_FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_STEPS = 25


def _run(source: Checkpoint, folder: Path, **settings: Any) -> dict[str, Any]:
    return Quantize(device="cpu", **settings).run(source, work(folder, source))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return toy_folder(tmp_path_factory.mktemp("toy") / "toy", toy_config("qwen2", num_layers=1), _STEPS)


def _shared_inputs(family: Family, folder: Path, scheme: Scheme, method: Any) -> tuple[float, np.ndarray[Any, Any]]:
    """A random model walked: the change of its logits against their size, and each matrix's error beside rounding's."""
    kv_heads = 4 if method == "awq" else 2  # every head its own: values fold into the output
    config = tiny_config(
        family, num_kv_heads=kv_heads, num_layers=2, qkv_bias=family == "qwen2", mlp_bias=family == "llama"
    )
    model = Decoder.from_tensors(config, random_tensors(config))
    ids = torch.from_numpy(batch_of_text(2, 20, 9).inputs)
    treatment = Calibrated(config=config, scheme=scheme, method=method, range="whole", search_tokens=100)
    with torch.no_grad():
        before = model(ids)
        kept = walk(model, material(4).calibration, treatment, folder)
        changed = float(((model(ids) - before).square().mean() / before.square().mean()).sqrt())
    return changed, np.array([kept[key] for key in kept if key.endswith(".errors")])


@pytest.mark.parametrize("family", _FAMILIES)
def test_gptq_loses_less_than_rounding_in_every_matrix_of_every_family(family: Family, tmp_path: Path) -> None:
    _, errors = _shared_inputs(family, tmp_path, _INT4, "gptq")
    assert len(errors) == 14
    assert bool((errors[:, 0] <= errors[:, 1] * (1 + 1e-4)).all())
    assert errors[:, 0].sum() < 0.9 * errors[:, 1].sum()


@pytest.mark.parametrize("family", _FAMILIES)
def test_awq_leaves_every_family_what_it_computes(family: Family, tmp_path: Path) -> None:
    """Eight bits show a scale that is missing on one side, which four would hide in their own error."""
    changed, errors = _shared_inputs(family, tmp_path, Scheme(), "awq")
    assert changed < 0.02
    assert errors.max() < 2e-4


def test_result_is_what_was_measured(toy: Checkpoint, tmp_path: Path) -> None:
    facts = _run(toy, tmp_path, scheme=_INT4, method="awq", search_tokens=100)
    assert facts == json.loads(json.dumps(facts))
    found = open_checkpoint(tmp_path / "out")
    assert found.scheme is not None
    assert found.scheme.weights == _INT4.weights
    assert set(found.quantized) == set(rtn.formats(toy.config, _INT4))
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == b"{}"
    assert not (tmp_path / "out" / "card.json").exists()
    held_out = material().held_out
    for side, checkpoint in (("before", toy), ("after", found)):
        model = Decoder.from_tensors(toy.config, checkpoint.tensors)
        bits = mean_loss(model, held_out, torch.device("cpu")) / math.log(2) / 2  # two bytes a token
        stated = facts[side]["bits_per_byte"]
        assert (stated if side == "before" else stated["value"]) == pytest.approx(bits, rel=1e-5)
    assert facts["after"]["kl"]["value"] < facts["rtn"]["kl"]["value"]
    assert facts["after"]["agreement"]["value"] > 0.5
    assert facts["bits_per_weight"] == 5.0
    assert facts["calibration"] == {"source": "a chain", "digest": "16", "tokens": 16 * 48}
    assert set(facts["layers"]) == {name.removesuffix(".weight") for name in found.quantized}


def test_rounding_is_its_own_control(toy: Checkpoint, tmp_path: Path) -> None:
    facts = _run(toy, tmp_path, scheme=_INT4, method="rtn")
    assert facts["after"] == facts["rtn"]
    assert all(pair["rtn"] > 0 for pair in facts["layers"].values())


@pytest.mark.parametrize("settings", [{"scheme": _INT4}, {"scheme": _EIGHT_BY_EIGHT, "smooth": 0.5}])
def test_stopped_and_called_again_writes_the_same_bytes(
    settings: dict[str, Any], toy_two: Checkpoint, tmp_path: Path
) -> None:
    _run(toy_two, tmp_path / "whole", **settings)
    stopped = work(tmp_path / "parts", toy_two)

    def stop(progress: Progress) -> None:
        if progress.done == 6:  # inside the second layer
            stopped.stopping.set()

    with pytest.raises(TrainingStoppedError):
        Quantize(device="cpu", **settings).run(
            toy_two, work(tmp_path / "parts", toy_two, on_progress=stop, stopping=stopped.stopping)
        )
    assert not (tmp_path / "parts" / "out").exists()
    seen: list[int] = []
    again = work(tmp_path / "parts", toy_two, on_progress=lambda progress: seen.append(progress.done))
    Quantize(device="cpu", **settings).run(toy_two, again)
    assert min(seen) > 4  # the first layer was not done again
    assert _files(tmp_path / "parts" / "out") == _files(tmp_path / "whole" / "out")


@pytest.fixture(scope="module")
def toy_two(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return toy_folder(tmp_path_factory.mktemp("toy") / "two", toy_config("gemma3_text"), _STEPS)


def test_collapse_is_told(toy: Checkpoint, tmp_path: Path) -> None:
    """Two bits a weight, a scale a row: no one may find this out in production."""
    said: list[str] = []
    scheme = Scheme(weights=WeightFormat(bits=2))
    facts = Quantize(scheme=scheme, method="rtn", device="cpu").run(toy, work(tmp_path, toy, say=said.append))
    assert facts["after"]["bits_per_byte"]["value"] > 1.05 * facts["before"]["bits_per_byte"]
    assert len(facts["warnings"]) == 1
    assert "bits per byte rose by" in facts["warnings"][0]
    assert facts["warnings"][0] in said[-1]


def test_calibration_on_the_wrong_text_is_told(toy: Checkpoint, tmp_path: Path) -> None:
    """Fewer tokens than inputs; and where the result is further from the source than rounding, that is said as well."""
    few = material(4)
    facts = Quantize(scheme=_INT4, device="cpu").run(toy, work(tmp_path / "a", toy, material=few))
    assert not any("tokens of calibration" in warning for warning in facts["warnings"])
    one = few.calibration.batches[0]
    object.__setattr__(few.calibration, "batches", (type(one)(one.inputs[:1, :40], one.targets[:1, :40]),))
    facts = Quantize(scheme=_INT4, device="cpu").run(toy, work(tmp_path / "b", toy, material=few))
    assert any("40 tokens of calibration for matrices of up to 128 inputs" in warning for warning in facts["warnings"])


@pytest.mark.parametrize("activations", [ActivationFormat(), _EIGHT_BY_EIGHT.activations])
def test_rounded_inputs_are_those_of_the_integer_twin(
    activations: ActivationFormat, toy: Checkpoint, tmp_path: Path
) -> None:
    scheme = Scheme(head=WeightFormat(bits=8), activations=activations)
    facts = _run(toy, tmp_path, scheme=scheme, method="rtn", smooth=0.6)
    found = open_checkpoint(tmp_path / "out")
    assert found.scheme == scheme
    # The twin computes with the arrays themselves, and a folder's are mapped read-only.
    quantized = {
        name: dataclasses.replace(weight, codes=weight.codes.copy(), scales=weight.scales.copy())
        for name, weight in found.quantized.items()
    }
    assert "lm_head.weight" in quantized
    static = quantized["model.layers.0.mlp.down_proj.weight"].input_scale
    assert (static is None) == activations.dynamic
    ids = torch.from_numpy(batch_of_text(2, 30, 3).inputs)
    with torch.no_grad():
        floating = in_few_bits(toy.config, found.tensors, quantized, scheme)(ids)
        integer = integer_decoder(toy.config, found.tensors, quantized, scheme)(ids)
    torch.testing.assert_close(floating, integer, rtol=1e-4, atol=1e-4)
    assert facts["after"]["kl"]["value"] < 0.01


def test_tied_embeddings_are_rounded_once(toy_two: Checkpoint, tmp_path: Path) -> None:
    scheme = Scheme(weights=_INT4.weights, head=WeightFormat(bits=8))
    _run(toy_two, tmp_path, scheme=scheme, method="rtn")
    found = open_checkpoint(tmp_path / "out")
    assert "model.embed_tokens.weight" in found.quantized
    assert "lm_head.weight" not in found.quantized
    lost = np.abs(found.tensors["model.embed_tokens.weight"] - toy_two.tensors["model.embed_tokens.weight"]).max()
    assert 0 < lost < 0.02 * np.abs(toy_two.tensors["model.embed_tokens.weight"]).max()


def test_shared_layers_are_quantized_once_and_never_folded(tmp_path: Path) -> None:
    config = toy_config("llama", layers=(LayerConfig(), LayerConfig(weights=0)))
    source = toy_folder(tmp_path / "source", config, 2)
    _run(source, tmp_path, scheme=_INT4, method="awq", search_tokens=50)
    found = open_checkpoint(tmp_path / "out")
    assert len(found.quantized) == 7
    for index in (0, 1):
        name = f"model.layers.{index}.input_layernorm.weight"
        assert np.array_equal(found.tensors[name], source.tensors[name])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheme": Scheme(weights=WeightFormat(bits=9))}, "9 bits a weight"),
        ({"scheme": Scheme(weights=WeightFormat(bits=4, group_size=48))}, "groups of 48 do not divide"),
        ({"scheme": _INT4, "method": "best"}, "sought rtn, gptq or awq"),
        ({"scheme": _INT4, "range": "half"}, "sought whole, mse or output"),
        ({"scheme": _INT4, "smooth": 0.5}, "activations in the scheme"),
        ({"scheme": _EIGHT_BY_EIGHT, "smooth": 1.5}, "sought 0 to 1"),
        ({"scheme": _INT4, "damping": 0.0}, "sought a number above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(
    settings: dict[str, Any], said: str, toy: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        _run(toy, tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_a_model_in_few_bits_is_not_rounded_again(toy: Checkpoint, tmp_path: Path) -> None:
    _run(toy, tmp_path, scheme=Scheme(), method="rtn")
    with pytest.raises(InvalidRequestError, match="in few bits already"):
        _run(open_checkpoint(tmp_path / "out"), tmp_path / "again", scheme=Scheme(), method="rtn")


def test_needs_cover_the_models_held_at_once() -> None:
    config = toy_config()
    assert Quantize(scheme=_INT4).needs(config).memory_bytes > 3 * 4 * config.num_parameters


@pytest.mark.slow
def test_order_of_methods_on_a_model_that_learned(tmp_path: Path) -> None:
    """KL to the source: int8 < int4 GPTQ ~ int4 AWQ < int4 by rounding << int3 by rounding."""
    config: DecoderConfig = toy_config("gemma3_text")
    assert mean_loss(trained(config, 200), material().held_out, torch.device("cpu")) < 1.6
    source = toy_folder(tmp_path / "source", config, 200)

    def kl(method: Any, bits: int) -> float:
        scheme = Scheme(weights=WeightFormat(bits=bits, group_size=None if bits == 8 else 32))
        folder = tmp_path / f"{method}{bits}"
        facts = Quantize(scheme=scheme, method=method, device="cpu").run(
            source, work(folder, source, material=material(64))
        )
        return float(facts["after"]["kl"]["value"])

    int8, gptq, awq, int4, int3 = kl("rtn", 8), kl("gptq", 4), kl("awq", 4), kl("rtn", 4), kl("rtn", 3)
    assert int8 < 0.1 * gptq
    assert 0.4 < gptq / awq < 2.5
    assert max(gptq, awq) < int4 < 0.4 * int3


@pytest.mark.parametrize(
    ("hidden", "inner", "asked", "sought"),
    [(128, 256, 64, 64), (96, 128, 64, 32), (80, 128, 64, None), (128, 256, None, None), (96, 192, 48, 48)],
)
def test_groups_fit_what_pruning_left(hidden: int, inner: int, asked: int | None, sought: int | None) -> None:
    config = tiny_config("qwen3", hidden_size=hidden, intermediate_size=inner, num_heads=4, head_dim=hidden // 4)
    said: list[str] = []
    scheme = Scheme(weights=WeightFormat(bits=4, group_size=asked), head=WeightFormat(bits=8))
    found = rtn.fitted(config, scheme, said.append)
    rtn.check_scheme(config, found)
    assert (found.weights.group_size, found.weights.bits, found.head) == (sought, 4, scheme.head)
    assert bool(said) == (sought != asked)


def test_a_scheme_chosen_before_the_shape_was_known_is_fitted_or_refused(toy: Checkpoint, tmp_path: Path) -> None:
    """`smelt shrink --stages prune,distil,w4` on spark ended in a refusal after everything else was done."""
    wide = Scheme(weights=WeightFormat(bits=4, group_size=256))
    with pytest.raises(InvalidRequestError, match="groups of 256"):
        _run(toy, tmp_path / "refused", scheme=wide, method="rtn")
    facts = _run(toy, tmp_path / "fitted", scheme=wide, method="rtn", fit_groups=True)
    assert (
        facts["scheme"]["weights"]["group_size"]
        == open_checkpoint(tmp_path / "fitted" / "out").scheme.weights.group_size
    )  # type: ignore[union-attr]
    same = _run(toy, tmp_path / "same", scheme=rtn.fitted(toy.config, wide), method="rtn")
    assert {key: facts[key] for key in ("scheme", "layers", "after")} == {
        key: same[key] for key in ("scheme", "layers", "after")
    }
