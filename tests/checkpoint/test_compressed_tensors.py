"""Quantized folders: saved and opened with every claim checked, and loaded by transformers with compressed-tensors."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from smelt.checkpoint import open_checkpoint, save_checkpoint
from smelt.checkpoint.packing import PACKED_BITS, pack, unpack
from smelt.checkpoint.quantized import QuantizedWeight
from smelt.checkpoint.safetensors import FloatDtype, SafetensorsFile, write_file
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError, UnsupportedError
from smelt.core.quantization import ActivationFormat, Scheme, WeightFormat
from smelt.model.decoder import Decoder
from tests.tiny import random_tensors, tiny_config

EMBEDDING, HEAD, DOWN = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"
INT8, INT8_G16 = WeightFormat(), WeightFormat(group_size=16)
INT4_G16, INT4_G16_ASYMMETRIC = (
    WeightFormat(bits=4, group_size=16),
    WeightFormat(bits=4, group_size=16, symmetric=False),
)
DYNAMIC, STATIC = ActivationFormat(), ActivationFormat(dynamic=False)
STATIC_ASYMMETRIC = ActivationFormat(dynamic=False, symmetric=False)


def quantized_matrix(shape: tuple[int, ...], format: WeightFormat, seed: int, **inputs: Any) -> QuantizedWeight:
    """Codes over the whole range; scales that every stored type holds; weights near the tiny models'."""
    rng = np.random.default_rng(seed)
    groups = 1 if format.group_size is None else shape[1] // format.group_size
    spread = 4 * shape[1] ** -0.5 / (1 << format.bits)
    scales = rng.integers(64, 128, (shape[0], groups)) * np.float32(2.0 ** np.floor(np.log2(spread / 96)))
    zeros = rng.integers(format.lowest, format.highest + 1, scales.shape, np.int8)
    return QuantizedWeight(
        format=format,
        codes=rng.integers(format.lowest, format.highest + 1, shape, np.int8),
        scales=scales.astype(np.float32),
        zeros=None if format.symmetric else zeros,
        **inputs,
    )


def quantized_model(
    config: DecoderConfig, scheme: Scheme
) -> tuple[dict[str, NDArray[np.float32]], dict[str, QuantizedWeight]]:
    """Plain tensors and quantized matrices of a model, random."""
    tensors, matrices = random_tensors(config), {}
    inputs: dict[str, Any] = {}
    if scheme.activations is not None and not scheme.activations.dynamic:
        inputs = {"input_scale": 2.0**-5, "input_zero": 0 if scheme.activations.symmetric else -9}
    for seed, (name, shape) in enumerate(config.tensor_shapes().items()):
        if name.endswith("_proj.weight"):
            matrices[name] = quantized_matrix(shape, scheme.weights, seed, **inputs)
        elif scheme.head is not None and name in (EMBEDDING, HEAD):
            matrices[name] = quantized_matrix(shape, scheme.head, seed)
    return {name: array for name, array in tensors.items() if name not in matrices}, matrices


def make_folder(path: Path, config: DecoderConfig, scheme: Scheme, dtype: FloatDtype = "F32") -> Path:
    tensors, matrices = quantized_model(config, scheme)
    save_checkpoint(path, config, tensors, dtype=dtype, quantized=matrices, scheme=scheme)
    return path


def assert_same(found: QuantizedWeight, sought: QuantizedWeight) -> None:
    assert (found.format, found.input_scale, found.input_zero) == (sought.format, sought.input_scale, sought.input_zero)
    for field in ("codes", "scales", "zeros"):
        one, other = getattr(found, field), getattr(sought, field)
        assert (one is None) == (other is None)
        assert one is None or (one.dtype == other.dtype and np.array_equal(one, other)), field


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_packing_keeps_every_code(data: st.DataObject) -> None:
    """A word at a time by hand: code k stands at bits k*b of its row."""
    bits = data.draw(st.sampled_from(PACKED_BITS))
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = data.draw(
        st.lists(st.integers(lowest, highest), min_size=rows * columns, max_size=rows * columns).map(
            lambda values: np.array(values, np.int8).reshape(rows, columns)
        )
    )
    words = pack(codes, bits)
    for row in range(rows):
        value = sum((int(code) - lowest) << (bits * k) for k, code in enumerate(codes[row]))
        by_hand = [(value >> (32 * word)) & 0xFFFFFFFF for word in range(words.shape[1])]
        assert [int(word) & 0xFFFFFFFF for word in words[row]] == by_hand
    assert words.shape[1] == -(-columns * bits // 32)
    assert np.array_equal(unpack(words, bits, columns), codes)


SCHEMES = {
    "w8": Scheme(weights=INT8),
    "w8-g16": Scheme(weights=INT8_G16, head=INT8),
    "w8-asymmetric": Scheme(weights=dataclasses.replace(INT8_G16, symmetric=False), activations=DYNAMIC),
    "w4-g16": Scheme(weights=INT4_G16, head=INT8),
    "w4-channel": Scheme(weights=WeightFormat(bits=4)),
    "w4-asymmetric": Scheme(weights=INT4_G16_ASYMMETRIC, head=INT8_G16),
    "w2": Scheme(weights=WeightFormat(bits=2, group_size=16)),
    "w3": Scheme(weights=WeightFormat(bits=3, group_size=16)),
    "w6a8": Scheme(weights=WeightFormat(bits=6), activations=DYNAMIC),
    "w8a8-dynamic": Scheme(weights=INT8, activations=DYNAMIC),
    "w8a8-static": Scheme(weights=INT8, head=INT8, activations=STATIC),
    "w8a8-static-asymmetric": Scheme(weights=INT8, activations=STATIC_ASYMMETRIC),
    "w4a8": Scheme(weights=INT4_G16, activations=DYNAMIC),
    "w4a8-static": Scheme(weights=INT4_G16_ASYMMETRIC, activations=STATIC),
}


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("name", SCHEMES)
def test_a_folder_opens_as_what_was_saved(name: str, dtype: FloatDtype, tmp_path: Path) -> None:
    config = tiny_config("qwen3", tie_embeddings=name in ("w4-asymmetric", "w8a8-static"))
    tensors, matrices = quantized_model(config, SCHEMES[name])
    opened = open_checkpoint(make_folder(tmp_path / "model", config, SCHEMES[name], dtype))
    assert (opened.config, opened.scheme) == (config, SCHEMES[name])
    assert set(opened.quantized) == set(matrices)
    assert set(opened.tensors) == {*tensors, *matrices} == set(config.tensor_shapes())
    for tensor, weight in matrices.items():
        assert_same(opened.quantized[tensor], weight)
        assert np.array_equal(opened.tensors[tensor], weight.dequantized())
    if dtype == "F32":
        assert all(np.array_equal(opened.tensors[tensor], array) for tensor, array in tensors.items())
    file = SafetensorsFile(tmp_path / "model" / "model.safetensors")
    assert {file.entries[part].dtype for part in file if part.endswith("_scale")} == {dtype}


def test_four_bits_take_four_bits(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=64, vocab_size=64)
    folder = make_folder(tmp_path / "model", config, Scheme(weights=INT4_G16), "BF16")
    file = SafetensorsFile(folder / "model.safetensors")
    size = sum(e.end - e.begin for name, e in file.entries.items() if name.startswith(DOWN))
    assert size == 64 * 64 // 2 + 64 * 4 * 2 + 16


def test_scales_that_the_folders_type_would_round_are_stored_wider(tmp_path: Path) -> None:
    config = tiny_config()
    tensors, matrices = quantized_model(config, Scheme(weights=INT8))
    odd = dataclasses.replace(matrices[DOWN], scales=matrices[DOWN].scales * np.float32(1.0001))
    save_checkpoint(tmp_path / "model", config, tensors, dtype="BF16", quantized={**matrices, DOWN: odd})
    opened = open_checkpoint(tmp_path / "model")
    assert_same(opened.quantized[DOWN], odd)
    assert opened.scheme == Scheme(weights=INT8)


def test_matrices_may_differ_and_some_stay_plain(tmp_path: Path) -> None:
    config = tiny_config()
    tensors, matrices = quantized_model(config, Scheme(weights=INT4_G16, head=INT8))
    matrices[DOWN] = quantized_matrix((48, 64), INT8, 77)
    left = "model.layers.0.self_attn.v_proj.weight"
    tensors[left] = matrices.pop(left).dequantized()
    save_checkpoint(tmp_path / "model", config, tensors, quantized=matrices)
    opened = open_checkpoint(tmp_path / "model")
    assert set(opened.quantized) == set(matrices) and opened.scheme == Scheme(weights=INT4_G16, head=INT8)
    for name, weight in matrices.items():
        assert_same(opened.quantized[name], weight)
    section = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    assert section["ignore"] == [left.removesuffix(".weight")] and section["format"] == "mixed-precision"


def test_a_plain_folder_has_nothing_quantized(tmp_path: Path) -> None:
    config = tiny_config()
    save_checkpoint(tmp_path / "model", config, random_tensors(config))
    opened = open_checkpoint(tmp_path / "model")
    assert (dict(opened.quantized), opened.scheme) == ({}, None)
    assert "quantization_config" not in (tmp_path / "model" / "config.json").read_text()


# ------------------------------------------------------------------------------------------------ independent reader


def load(folder: Path) -> Any:
    """The folder in transformers, in float32. All that is on disk must find its place, and nothing be made up."""
    pytest.importorskip("compressed_tensors", reason="the independent reader is not installed (compressed-tensors)")
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    # Gemma's constant is reported where the embedding is quantized: that library makes it a tensor; its value is right.
    info["missing_keys"] -= {"model.embed_tokens.embed_scale"}
    assert not any(info.values()), {kind: found for kind, found in info.items() if found}
    return model.eval()


def rounded(x: torch.Tensor, weight: QuantizedWeight, activations: ActivationFormat) -> torch.Tensor:
    """Inputs as that library rounds them: a token's symmetric scale is its largest value / 127.5."""
    if weight.input_scale is not None:
        scale, zero = torch.tensor(weight.input_scale), torch.tensor(float(weight.input_zero))
    else:
        scale, zero = x.abs().amax(-1, keepdim=True) / 127.5, torch.tensor(0.0)
    return (torch.clamp(torch.round(x / scale + zero), -128, 127) - zero) * scale


def our_logits(
    config: DecoderConfig, tensors: Mapping[str, Any], matrices: Mapping[str, QuantizedWeight], scheme: Scheme, ids: Any
) -> torch.Tensor:
    """Our decoder over the dequantized weights, inputs rounded in front of every quantized matrix of a layer."""
    whole = {**tensors, **{name: weight.dequantized() for name, weight in matrices.items()}}
    model = Decoder.from_tensors(config, whole)
    modules = dict(model.named_modules())
    activations = scheme.activations

    def rounding(weight: QuantizedWeight) -> Callable[..., tuple[torch.Tensor]]:
        assert activations is not None
        return lambda _, args: (rounded(args[0], weight, activations),)

    num_hooks = 0
    for name, weight in matrices.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)_proj\.weight", name)
        if activations is None or found is None:
            continue
        layer, matrix = found.groups()
        (module,) = [
            m for path, m in modules.items() if re.fullmatch(rf".*layers\.{layer}\..*\b{matrix}(_proj)?", path)
        ]
        module.register_forward_pre_hook(rounding(weight))
        num_hooks += 1
    assert num_hooks == (0 if activations is None else 7 * config.num_layers)
    with torch.no_grad():
        return model(torch.tensor([ids]))


PROVEN = {
    "llama": ("llama", False, ("w8", "w8-asymmetric", "w4-g16", "w4-asymmetric", "w3", "w8a8-dynamic", "w8a8-static")),
    "llama-tied": ("llama", True, ("w8-g16", "w8a8-static", "w4-asymmetric")),
    "qwen2": ("qwen2", True, ("w4-g16", "w8a8-static-asymmetric")),
    "qwen3": ("qwen3", False, ("w4-channel", "w4a8")),
    "gemma3_text": ("gemma3_text", True, ("w4-asymmetric", "w4a8-static")),
}


@pytest.mark.filterwarnings("default")  # the readers' own
@pytest.mark.parametrize(("case", "name"), [(case, name) for case, row in PROVEN.items() for name in row[2]])
def test_transformers_computes_what_the_codes_stand_for(case: str, name: str, tmp_path: Path) -> None:
    family, tied, _ = PROVEN[case]
    config, scheme = tiny_config(family, tie_embeddings=tied), SCHEMES[name]  # type: ignore[arg-type]
    theirs = load(make_folder(tmp_path / "model", config, scheme))
    ids = [int(t) for t in np.random.default_rng(5).integers(0, config.vocab_size, 24)]
    with torch.no_grad():
        found = theirs(torch.tensor([ids])).logits
    sought = our_logits(config, *quantized_model(config, scheme), scheme, ids)
    off = (found - sought).abs().amax(-1).flatten() / max(1.0, float(sought.abs().max()))
    if scheme.activations is None:
        assert float(off.max()) <= 1e-4
    else:  # an input half-way between two codes falls to either side by the last digit of what came before
        assert float(off.median()) <= 1e-4 and float(off.max()) <= 1e-2


# ------------------------------------------------------------------------------------------------ refusals


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the section of config.json in place."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def group(section: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = section["config_groups"]["group_0"]
    return found


UNSUPPORTED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "method": (lambda s: s.update(quant_method="gptq"), "quant_method = 'gptq'"),
    "format": (lambda s: group(s).update(format="nvfp4-pack-quantized"), "format = 'nvfp4-pack-quantized'"),
    "marlin": (lambda s: (s.update(format="marlin-24"), group(s).pop("format")), "format = 'marlin-24'"),
    "status": (lambda s: s.update(quantization_status="initialized"), "quantization_status"),
    "kv cache": (lambda s: s.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    "sparsity": (lambda s: s.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
    "preset": (lambda s: s["config_groups"].update(W8A8=["Linear"]), "schemes by name"),
    "outputs": (lambda s: group(s).update(output_activations={"num_bits": 8}), "output_activations"),
    "float": (lambda s: group(s)["weights"].update(type="float"), "type = 'float'"),
    "block": (lambda s: group(s)["weights"].update(strategy="block"), "strategy = 'block'"),
    "order": (lambda s: group(s)["weights"].update(actorder="group"), "actorder = 'group'"),
    "3 bits": (lambda s: group(s)["weights"].update(num_bits=3), "packed are 2, 4, 8"),
    "inputs": (lambda s: group(s).update(input_activations={"num_bits": 4, "strategy": "tensor"}), "8 bits"),
    "token": (lambda s: group(s).update(input_activations={"dynamic": True, "strategy": "group"}), "'group'"),
    "unknown": (lambda s: s.update(rotation="hadamard"), "rotation = 'hadamard'"),
    "pattern": (lambda s: group(s).update(targets=["re:(a+)+$"]), "no group"),
    "repeats": (lambda s: group(s).update(targets=["re:.*.*.*.*.*x"]), "four single characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_read_is_named(case: str, tmp_path: Path) -> None:
    change, about = UNSUPPORTED[case]
    folder = make_folder(tmp_path / "model", tiny_config(), SCHEMES["w4-channel"])
    open_checkpoint(folder)
    edit(folder, change)
    with pytest.raises(UnsupportedError, match=re.escape(about)):
        open_checkpoint(folder)


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no groups": (lambda s: s.update(config_groups={}), "at least one group"),
    "no method": (lambda s: s.pop("quant_method"), "quant_method is missing"),
    "targets": (lambda s: group(s).update(targets="Linear"), "a list of strings"),
    "regex": (lambda s: group(s).update(targets=["re:("]), "a regular expression"),
    "bits": (lambda s: group(s)["weights"].update(num_bits=16), "2..8"),
    "group size": (lambda s: group(s)["weights"].update(strategy="group", group_size=16), "weight_scale is F32"),
    "odd group": (lambda s: group(s)["weights"].update(strategy="group", group_size=20), "no multiple of 20"),
    "asymmetric": (lambda s: group(s)["weights"].update(symmetric=False), "zero_point missing"),
    "8 bits": (lambda s: group(s)["weights"].update(num_bits=8), "weight_packed is I32"),
    "as bytes": (lambda s: group(s).update(format="naive-quantized"), "missing"),
    "ignored": (lambda s: s.update(ignore=["re:.*down_proj"]), "missing"),
    "static": (
        lambda s: group(s).update(input_activations={"num_bits": 8, "strategy": "tensor"}), "input_scale missing"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_section_that_the_tensors_belie_is_refused(case: str, tmp_path: Path) -> None:
    change, about = MALFORMED[case]
    folder = make_folder(tmp_path / "model", tiny_config(), SCHEMES["w4-channel"])
    edit(folder, change)
    with pytest.raises(CheckpointError, match=re.escape(about)):
        open_checkpoint(folder)


def rewrite(folder: Path, change: Callable[[dict[str, NDArray[Any]]], Any]) -> None:
    """Change tensors of a folder, each kept in its own type."""
    file = SafetensorsFile(folder / "model.safetensors")
    arrays = {name: file.stored(name).copy() for name in file}
    change(arrays)
    kinds = {np.dtype("i1"): "I8", np.dtype("<i4"): "I32", np.dtype("<i8"): "I64"}
    dtypes: Any = {name: kinds[array.dtype] for name, array in arrays.items() if array.dtype in kinds}
    write_file(folder / "model.safetensors", arrays, "F32", dtypes=dtypes)


Q = "model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("name", "change", "about"),
    [
        ("w4-channel", lambda a: a.update({Q + "weight_shape": np.array([64, 49])}), "does not say [64, 48]"),
        ("w4-channel", lambda a: a[Q + "weight_scale"].fill(np.nan), "NaN or infinity"),
        ("w4-channel", lambda a: a.update({Q + "weight_zero_point": np.ones((64, 1), np.int8)}), "is not 0"),
        ("w3", lambda a: a[Q + "weight"].fill(5), "codes beyond 3 bits"),
        ("w8a8-static", lambda a: a[Q + "input_scale"].fill(0.0), "input_scale is 0"),
        ("w8a8-static", lambda a: a.update({Q + "input_zero_point": np.ones(1, np.int8)}), "is not 0"),
        ("w8a8-static", lambda a: a["lm_head.weight_scale"].fill(2.0), "to which it is tied"),
        ("w8a8-static", lambda a: a.update({Q + "weight_g_idx": np.zeros(48, np.int32)}), "not called for"),
    ],
)
def test_tensors_that_lie_are_refused(
    name: str, change: Callable[[dict[str, NDArray[Any]]], Any], about: str, tmp_path: Path
) -> None:
    config = tiny_config(tie_embeddings=name == "w8a8-static")
    folder = make_folder(tmp_path / "model", config, SCHEMES[name])
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=re.escape(about)):
        opened = open_checkpoint(folder)
        opened.quantized[Q + "weight"]


def test_zero_points_that_say_nothing_are_passed_over(tmp_path: Path) -> None:
    """Earlier writers left them in symmetric folders; and a scale a row may come without its second axis."""
    config = tiny_config()
    _, matrices = quantized_model(config, SCHEMES["w8"])
    folder = make_folder(tmp_path / "model", config, SCHEMES["w8"])
    rewrite(folder, lambda a: a.update({Q + "weight_zero_point": np.zeros((64, 1), np.int8)}))
    rewrite(folder, lambda a: a.update({Q + "weight_scale": a[Q + "weight_scale"].reshape(-1)}))
    opened = open_checkpoint(folder)
    assert_same(opened.quantized[Q + "weight"], matrices[Q + "weight"])
    assert Q + "weight_zero_point" not in opened.tensors


def test_the_most_exact_target_wins(tmp_path: Path) -> None:
    """A module's own name before a pattern, a pattern before its class, `ignore` before all."""
    config = tiny_config(num_layers=2)
    tensors, matrices = quantized_model(config, Scheme(weights=INT4_G16))
    down = {name: quantized_matrix((48, 64), INT8_G16, i) for i, name in enumerate(matrices) if "down" in name}
    first, second = down
    down[second] = quantized_matrix((48, 64), INT8, 9)
    whole = {**matrices, **down}
    save_checkpoint(tmp_path / "model", config, tensors, quantized=whole)

    def change(section: dict[str, Any]) -> None:
        by_targets = {tuple(body["targets"]): body for body in section["config_groups"].values()}
        assert set(by_targets) == {(first[:-7],), (second[:-7],), ("Linear",)}
        by_targets[first[:-7],]["targets"] = ["re:.*down_proj$"]
        section["ignore"] = ["lm_head"]

    edit(tmp_path / "model", change)
    opened = open_checkpoint(tmp_path / "model")
    for name, weight in whole.items():
        assert_same(opened.quantized[name], weight)


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"format": WeightFormat(bits=4, group_size=20)}, "do not divide its 64 inputs"),
        ({"format": WeightFormat(bits=2, group_size=16)}, "sought int8 codes -2..1"),
        ({"codes": np.zeros((3, 3), np.int8)}, "codes have shape [3, 3]"),
        ({"scales": np.full((48, 4), np.inf, np.float32)}, "sought finite scales"),
        ({"scales": np.ones((48, 3), np.float32)}, "sought finite scales of shape [48, 4]"),
        ({"zeros": np.zeros((48, 4), np.int8)}, "sought zero points"),
        ({"input_scale": 0.5}, "sought an input scale where"),
    ],
)
def test_a_matrix_that_does_not_fit_is_not_saved(change: dict[str, Any], about: str, tmp_path: Path) -> None:
    config, scheme = tiny_config(), Scheme(weights=INT4_G16)
    tensors, matrices = quantized_model(config, scheme)
    matrices[DOWN] = dataclasses.replace(matrices[DOWN], **change)
    with pytest.raises(CheckpointError, match=re.escape(about)):
        save_checkpoint(tmp_path / "model", config, tensors, quantized=matrices, scheme=scheme)
    assert not list(tmp_path.iterdir())


def test_only_matrices_are_quantized(tmp_path: Path) -> None:
    config, scheme = tiny_config(), Scheme()
    norm = QuantizedWeight(format=INT8, codes=np.zeros((1, 48), np.int8), scales=np.ones((1, 1), np.float32))
    for name in ("model.norm.weight", "model.layers.9.mlp.down_proj.weight"):
        with pytest.raises(CheckpointError, match="is no matrix"):
            save_checkpoint(tmp_path / "model", config, random_tensors(config), quantized={name: norm}, scheme=scheme)
