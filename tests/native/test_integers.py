"""Matrices that come in few bits: kernels against integer arithmetic in numpy, models against the torch decoder."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smelt.checkpoint import save_checkpoint
from smelt.checkpoint.quantized import QuantizedWeight
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import EngineError
from smelt.core.quantization import ActivationFormat, Scheme, WeightFormat
from smelt.native import Integers, NativeRunner, native_weights
from smelt.native.extension import core
from smelt.native.formats import Form, Inputs, form_of, inputs_of, joined
from tests.model.test_sharing import SHARING
from tests.native.batches import logits_by_chunks, prompt
from tests.native.test_kernels import ISAS, _rounded_activations, _rounded_weights
from tests.native.test_parity import mean_kl, oracle_logits
from tests.tiny import random_tensors, tiny_config

F32 = NDArray[np.float32]
GROUPS = (None, 32, 64, 128)
INPUTS = (
    Inputs(),
    Inputs("token"),
    Inputs("token", symmetric=False),
    Inputs("tensor", scale=0.011),
    Inputs("tensor", symmetric=False, scale=0.013, zero=-37),
)


def random_matrix(
    rows: int, width: int, format: WeightFormat, seed: int, *, float_scales: bool = False, **inputs: Any
) -> QuantizedWeight:
    """Codes over the whole range, both ends among them; scales that bfloat16 holds unless `float_scales`."""
    rng = np.random.default_rng(seed)
    groups = 1 if format.group_size is None else -(-width // format.group_size)
    scales = (rng.integers(128, 256, (rows, groups)) * 2.0**-8 * width**-0.5 / format.highest).astype(np.float32)
    scales = scales * np.float32(1.00001) if float_scales else (scales.view(np.uint32) & 0xFFFF0000).view(np.float32)
    codes = rng.integers(format.lowest, format.highest + 1, (rows, width), np.int8)
    codes[:, rng.random(width) < 0.1] = format.lowest
    zeros = rng.integers(format.lowest, format.highest + 1, (rows, groups), np.int8)
    zeros.flat[0], zeros.flat[-1] = format.lowest, format.highest
    return QuantizedWeight(
        format=format, codes=codes, scales=scales, zeros=None if format.symmetric else zeros, **inputs
    )


def input_codes(x: F32, inputs: Inputs) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Codes [T, K], scales and zero points [T, 1] of the inputs, in float32 where the core computes in it."""
    low = np.minimum(x.min(-1, keepdims=True), np.float32(0))
    high = np.maximum(x.max(-1, keepdims=True), np.float32(0))
    if inputs.kind == "tensor":
        scale, zero = np.full_like(low, inputs.scale), np.full(low.shape, inputs.zero)
    elif inputs.symmetric:
        scale, zero = np.maximum(high, -low) / np.float32(127), np.zeros(low.shape)
    else:
        scale = (high - low) / np.float32(255)
        zero = (-128 - np.rint(low / scale)).clip(-128, 127)
    codes = (np.rint(x / scale) + zero).clip(-128, 127)
    return codes.astype(np.int64), scale, zero.astype(np.int64)


def twin(weight: QuantizedWeight, x: F32, inputs: Inputs) -> NDArray[np.float64]:
    """x times the weights' transpose, by whole numbers where inputs have one scale a row."""
    if inputs.kind == "group":
        padded = np.pad(weight.dequantized().astype(np.float64), ((0, 0), (0, -x.shape[1] % 32)))
        return _rounded_activations(x).reshape(len(x), -1) @ padded.T
    codes, scale, zero = input_codes(x, inputs)
    width = x.shape[1]
    group = weight.format.group_size or width
    steps = weight.codes.astype(np.int64)
    if weight.zeros is not None:
        steps = steps - np.repeat(weight.zeros.astype(np.int64), group, axis=1)[:, :width]
    out = np.zeros((len(x), len(steps)))
    for i, first in enumerate(range(0, width, group)):
        whole = (codes - zero)[:, first : first + group] @ steps[:, first : first + group].T  # exact
        out += whole * weight.scales[:, i].astype(np.float64)
    return out * scale.astype(np.float64)


def multiply(weight: QuantizedWeight, x: F32, inputs: Inputs, isa: str, form: Form | None = None) -> F32:
    form = form or form_of("matrix", weight)
    kind = core()
    found: F32 = kind.multiply_codes(
        weight.codes,
        weight.scales,
        weight.zeros,
        weight.format.group_size or weight.codes.shape[1],
        kind.Format(form.bits, form.units_per_scale, form.has_zeros, form.float_scales),
        kind.Input(inputs.kind, inputs.symmetric, inputs.scale, inputs.zero),
        x,
        isa,
    )
    return found


formats = st.builds(
    WeightFormat, bits=st.sampled_from((2, 3, 4, 6, 8)), group_size=st.sampled_from(GROUPS), symmetric=st.booleans()
)


@given(
    format=formats,
    inputs=st.sampled_from(INPUTS),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
    float_scales=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_products_are_the_twins(
    format: WeightFormat, inputs: Inputs, shape: tuple[int, int, int], seed: int, float_scales: bool
) -> None:
    """Odd shapes, ragged last groups, both ends of every range, on every instruction set; AVX2's kin bit for bit."""
    rows, width, num_tokens = shape
    weight = random_matrix(rows, width, format, seed, float_scales=float_scales)
    x = np.random.default_rng(seed + 1).normal(size=(num_tokens, width)).astype(np.float32)
    x[:, 0] = -2.0  # a whole row's lowest, beyond what the static scales reach
    want = twin(weight, x, inputs)
    size = np.abs(x).max() * np.abs(weight.dequantized()).max() * width
    found = {isa: multiply(weight, x, inputs, isa) for isa in ISAS}
    for product in found.values():
        assert np.abs(product - want).max() <= 1e-6 * size
    kin = [product for isa, product in found.items() if isa != "portable"]
    assert all(np.array_equal(kin[0], other) for other in kin[1:])
    alone = multiply(weight, x[-1:], inputs, ISAS[-1])
    assert np.array_equal(alone[0], found[ISAS[-1]][-1])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("bits", "symmetric"), [*itertools.product((4, 8), (True, False))])
def test_the_ends_of_the_ranges_are_exact(bits: int, symmetric: bool, isa: str) -> None:
    """One group, codes and inputs at their ends: the sum is a whole number and the result one rounding of it.

    AVX2 multiplies |weight| by the input under the weight's sign; for a weight and an input of -128 that lost the sign.
    """
    format = WeightFormat(bits=bits, symmetric=symmetric)
    corners = np.array([format.lowest, format.highest], np.int8)
    codes = np.random.default_rng(0).choice(corners, (16, 32))
    codes[0], codes[1] = format.lowest, format.highest
    zeros = np.resize(corners[::-1], (16, 1)).copy()
    weight = QuantizedWeight(
        format=format, codes=codes, scales=np.ones((16, 1), np.float32), zeros=None if symmetric else zeros
    )
    x = np.random.default_rng(1).choice(np.array([-300.0, 300.0, -128.0, 127.0], np.float32), (5, 32))
    x[0], x[1] = -128.0, 127.0
    found = multiply(weight, x, Inputs("tensor", scale=1.0), isa)
    steps = codes.astype(np.int64) - (0 if symmetric else zeros.astype(np.int64))
    assert np.array_equal(found, (x.clip(-128, 127).astype(np.int64) @ steps.T).astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_a_wider_form_changes_no_bit(isa: str) -> None:
    """What fusing with another matrix does to one: more bits, finer groups, zero points, wider scales."""
    weight = random_matrix(24, 256, WeightFormat(bits=4, group_size=128), 3)
    x = np.random.default_rng(4).normal(size=(3, 256)).astype(np.float32)
    narrow = form_of("matrix", weight)
    assert narrow == Form(4, 4, False, False)
    for other in (Form(8, 4, False, False), Form(4, 1, False, False), Form(4, 4, True, False), Form(8, 2, True, True)):
        wide = joined([narrow, other])
        assert np.array_equal(multiply(weight, x, Inputs(), isa, wide), multiply(weight, x, Inputs(), isa))


def test_values_that_are_not_finite_are_not_lost() -> None:
    weight = random_matrix(8, 64, WeightFormat(), 0)
    for inputs, bad in itertools.product(INPUTS, (np.nan, np.inf, -np.inf)):
        x = np.ones((1, 64), np.float32)
        x[0, 40] = bad
        assert all(np.isnan(multiply(weight, x, inputs, isa)).all() for isa in ISAS)


def test_inputs_of_zeros_give_zeros() -> None:
    weight = random_matrix(8, 64, WeightFormat(bits=4, symmetric=False), 0)
    for inputs in INPUTS[:4]:
        assert all(not multiply(weight, np.zeros((2, 64), np.float32), inputs, isa).any() for isa in ISAS)


# ------------------------------------------------------------------------------------------------ whole models


def wide_config(family: str = "llama", **changes: Any) -> DecoderConfig:
    """Widths that groups of 32 and 64 divide."""
    if family == "gemma3_text":
        changes = {"embedding_scale": 8.0} | changes
    return tiny_config(family, **({"hidden_size": 64, "intermediate_size": 128} | changes))  # type: ignore[arg-type]


def rounded_model(config: DecoderConfig, scheme: Scheme, seed: int = 1) -> tuple[dict[str, F32], dict[str, Any]]:
    """Random tensors, and the matrices among them rounded to nearest; `input_scale` about what the tiny models need."""
    tensors, matrices = random_tensors(config, seed), {}
    static = scheme.activations is not None and not scheme.activations.dynamic
    for name, array in tensors.items():
        inside = name.endswith("_proj.weight")
        format = scheme.weights if inside else scheme.head
        if not (inside or name in ("model.embed_tokens.weight", "lm_head.weight")) or format is None:
            continue
        width = array.shape[1]
        groups = array.reshape(len(array), -1, format.group_size or width)
        low, high = groups.min(-1), groups.max(-1)
        scale = (
            np.maximum(high, -low) / (format.highest + 0.5) if format.symmetric else (high - low) / (2**format.bits - 1)
        )
        zero = np.zeros_like(scale) if format.symmetric else np.rint(format.lowest - low / scale)
        zero = zero.clip(format.lowest, format.highest)
        codes = np.rint(groups / scale[..., None]) + zero[..., None]
        matrices[name] = QuantizedWeight(
            format=format,
            codes=codes.clip(format.lowest, format.highest).astype(np.int8).reshape(array.shape),
            scales=scale.astype(np.float32),
            zeros=None if format.symmetric else zero.astype(np.int8),
            input_scale=0.03 if static and inside else None,
        )
    return tensors, matrices


def stands_for(tensors: dict[str, F32], matrices: dict[str, QuantizedWeight]) -> dict[str, F32]:
    return {**tensors, **{name: weight.dequantized() for name, weight in matrices.items()}}


def make_runner(config: DecoderConfig, scheme: Scheme, seed: int = 1, **options: Any) -> NativeRunner:
    tensors, matrices = rounded_model(config, scheme, seed)
    left = {name: array for name, array in tensors.items() if name not in matrices}
    options = {"num_blocks": 8, "num_threads": 1} | options
    return NativeRunner(config, left, weights=Integers(matrices, scheme.activations), **options)


INT4 = WeightFormat(bits=4, group_size=32)
SCHEMES = {
    "w8": Scheme(weights=WeightFormat(), head=WeightFormat()),
    "w4-g32": Scheme(weights=INT4, head=WeightFormat()),
    "w4-g64-asymmetric": Scheme(weights=WeightFormat(bits=4, group_size=64, symmetric=False), head=WeightFormat()),
    "w8a8": Scheme(weights=WeightFormat(), head=WeightFormat(), activations=ActivationFormat()),
    "w4a8-asymmetric": Scheme(weights=INT4, head=WeightFormat(), activations=ActivationFormat(symmetric=False)),
    "w8a8-static": Scheme(weights=WeightFormat(), head=WeightFormat(), activations=ActivationFormat(dynamic=False)),
}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("name", SCHEMES)
def test_logits_are_those_of_what_the_codes_stand_for(name: str, family: str) -> None:
    """Only the inputs' rounding is between the core and the torch decoder over the dequantized weights."""
    config, scheme = wide_config(family), SCHEMES[name]
    ids = prompt(config, 40)
    found = logits_by_chunks(make_runner(config, scheme), ids, [30, 1, 9])
    want = oracle_logits(config, stands_for(*rounded_model(config, scheme)), ids)
    assert mean_kl(want, found) < (6e-3 if scheme.activations is None else 3e-2)


@pytest.mark.parametrize("name", ["w8a8", "w8a8-static"])
def test_inputs_are_rounded_as_the_folder_says(name: str) -> None:
    """A layer alone, inputs rounded by the twin in front of every matrix: nearer than the core's own rounding comes."""
    import torch

    from smelt.model.decoder import Decoder

    config, scheme = wide_config(num_layers=1), SCHEMES[name]
    tensors, matrices = rounded_model(config, scheme)
    ids = prompt(config, 24)
    decoder = Decoder.from_tensors(config, stands_for(tensors, matrices)).eval()
    inputs = Inputs("tensor", scale=0.03) if scheme.activations == ActivationFormat(dynamic=False) else Inputs("token")

    def rounding(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        codes, scale, zero = input_codes(args[0].numpy(), inputs)
        return (torch.from_numpy(((codes - zero) * scale).astype(np.float32)),)

    hooked = [m for path, m in decoder.named_modules() if path.endswith("_proj")]
    assert len(hooked) == 7
    for module in hooked:
        module.register_forward_pre_hook(rounding)
    with torch.inference_mode():
        want = decoder.logits(decoder.hidden(torch.tensor([ids]))[0]).numpy()
    found = logits_by_chunks(make_runner(config, scheme), ids, [24])
    other = logits_by_chunks(make_runner(config, dataclasses.replace(scheme, activations=None)), ids, [24])
    assert mean_kl(want, found) < 0.5 * mean_kl(want, other)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["w4-g32", "w4a8-asymmetric", "w8a8-static"])
def test_chunks_and_threads_change_no_bit(name: str, isa: str) -> None:
    """Also where a token's scale is known only when every thread has its part of the row."""
    config = wide_config("qwen3")
    ids = prompt(config, 41)
    whole = logits_by_chunks(make_runner(config, SCHEMES[name], isa=isa), ids, [41])
    for num_threads, sizes in itertools.product((1, 2, 3), ([41], [1], [5], [17, 1, 8])):
        runner = make_runner(config, SCHEMES[name], isa=isa, num_threads=num_threads)
        assert np.array_equal(logits_by_chunks(runner, ids, sizes, [4, 1, 2]), whole), (num_threads, sizes)


def test_floats_rounded_at_load_are_the_same_integers() -> None:
    """What "w8" makes of floats, handed over as codes: every bit the same."""
    config = wide_config("qwen2")
    tensors = random_tensors(config, 2)
    matrices = {}
    for name, array in tensors.items():
        if array.ndim == 2:
            groups = _rounded_weights(array)
            step = (np.abs(array.reshape(len(array), -1, 32)).max(-1) / np.float32(127.5)).astype(np.float32)
            step = ((step.view(np.uint32) + 0xFFFF) & 0xFFFF0000).view(np.float32)
            codes = np.rint(groups / step[..., None]).reshape(array.shape).astype(np.int8)
            matrices[name] = QuantizedWeight(format=WeightFormat(group_size=32), codes=codes, scales=step)
    ids = prompt(config, 20)
    one = NativeRunner(config, tensors, num_blocks=4, num_threads=1)
    other = NativeRunner(config, tensors, weights=Integers(matrices), num_blocks=4, num_threads=1)
    assert one.weight_bytes == other.weight_bytes
    assert np.array_equal(logits_by_chunks(one, ids, [20]), logits_by_chunks(other, ids, [20]))


def test_matrices_that_differ_are_multiplied_as_one() -> None:
    """q in 4 bits, k in 8 with zero points, v rounded at load; gate in wider scales than up."""
    config = wide_config(num_layers=1)
    tensors, matrices = rounded_model(config, Scheme(weights=INT4))
    _, others = rounded_model(config, Scheme(weights=WeightFormat(group_size=64, symmetric=False)))
    p = "model.layers.0."
    matrices[f"{p}self_attn.k_proj.weight"] = others[f"{p}self_attn.k_proj.weight"]
    del matrices[f"{p}self_attn.v_proj.weight"]
    gate = matrices[f"{p}mlp.gate_proj.weight"]
    matrices[f"{p}mlp.gate_proj.weight"] = dataclasses.replace(gate, scales=gate.scales * np.float32(1.00001))
    ids = prompt(config, 30)
    runner = NativeRunner(config, tensors, weights=Integers(matrices), num_blocks=4, num_threads=1)
    want = oracle_logits(config, stands_for(tensors, matrices), ids)
    assert mean_kl(want, logits_by_chunks(runner, ids, [30])) < 6e-3


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("activations", [None, ActivationFormat(symmetric=False)])
def test_layers_that_share_matrices_share_the_codes(name: str, activations: ActivationFormat | None) -> None:
    """Residues are rounded at load and multiply the same inputs, whose zero point must come off there too."""
    config, scheme = SHARING[name], Scheme(weights=WeightFormat(), head=WeightFormat(), activations=activations)
    tensors, matrices = rounded_model(config, scheme)
    ids = prompt(config, 40)
    runner = make_runner(config, scheme, num_threads=2)
    want = oracle_logits(config, stands_for(tensors, matrices), ids)
    assert mean_kl(want, logits_by_chunks(runner, ids, [30, 1, 9])) < 1e-2
    assert runner.weight_bytes <= NativeRunner(config, tensors, num_blocks=1, num_threads=1).weight_bytes


def test_four_bits_take_half_the_memory() -> None:
    config = wide_config(
        hidden_size=256, intermediate_size=512, vocab_size=64, num_heads=4, num_kv_heads=4, head_dim=64
    )
    sizes = {}
    for bits, group in itertools.product((8, 4), (32, None)):
        format = WeightFormat(bits=bits, group_size=group)
        tensors, matrices = {}, {}
        for seed, (name, shape) in enumerate(config.tensor_shapes().items()):
            tensors[name] = np.zeros(shape, np.float32)
            if name.endswith("_proj.weight"):
                matrices[name] = random_matrix(*shape, format, seed)
        whole = NativeRunner(config, tensors, num_blocks=1).weight_bytes
        sizes[bits, group] = NativeRunner(config, tensors, weights=Integers(matrices), num_blocks=1).weight_bytes
    inside = 3 * (4 * 256 * 256 + 3 * 256 * 512)
    assert sizes[8, 32] == whole and sizes[8, 32] - sizes[4, 32] == inside // 2
    assert sizes[8, None] - sizes[4, None] == inside // 2 and sizes[8, None] < whole


def test_what_the_core_cannot_run_is_named() -> None:
    config = wide_config(num_layers=1)
    with pytest.raises(EngineError, match="groups of 16 inputs"):
        make_runner(config, Scheme(weights=WeightFormat(group_size=16)))
    tensors, matrices = rounded_model(config, SCHEMES["w8a8-static"])
    k = "model.layers.0.self_attn.k_proj.weight"
    static = ActivationFormat(dynamic=False)
    for scale in (0.04, None):
        odd = {**matrices, k: dataclasses.replace(matrices[k], input_scale=scale)}
        with pytest.raises(EngineError, match="input scales must be there and the same"):
            NativeRunner(config, tensors, weights=Integers(odd, static), num_blocks=1)
    for field in ("scales", "codes"):
        odd = {**matrices, k: dataclasses.replace(matrices[k], **{field: getattr(matrices[k], field)[:-1]})}
        with pytest.raises(EngineError, match="k_proj"):
            NativeRunner(config, tensors, weights=Integers(odd, static), num_blocks=1)
    bad = dataclasses.replace(matrices[k], scales=matrices[k].scales * np.float32(np.nan))
    with pytest.raises(EngineError, match="NaN or infinity"):
        NativeRunner(config, tensors, weights=Integers({**matrices, k: bad}, static), num_blocks=1)
    with pytest.raises(EngineError, match="inputs of 4 bits"):
        inputs_of([k], [matrices[k]], ActivationFormat(bits=4))


def test_a_served_folder_runs_its_codes(tmp_path: Path) -> None:
    """LLM.load takes the matrices as they are, and with "fp32" what they stand for."""
    from smelt.checkpoint import open_checkpoint
    from smelt.core.sampling import SamplingParams
    from smelt.generate.llm import LLM
    from smelt.generate.options import LLMOptions
    from tests.tiny import tiny_tokenizer_files

    files, ids = tiny_tokenizer_files()
    config, scheme = wide_config("gemma3_text", context_len=256, **ids), SCHEMES["w4-g32"]
    tensors, matrices = rounded_model(config, scheme)
    folder = tmp_path / "model"
    save_checkpoint(folder, config, tensors, dtype="F32", files=files, quantized=matrices, scheme=scheme)
    opened = open_checkpoint(folder)
    assert native_weights("fp32", opened.quantized, opened.scheme) == "fp32"
    assert native_weights("w8", {}, None) == "w8"
    num_bytes = {}
    for weights in ("w8", "fp32"):
        llm = LLM.load(folder, options=LLMOptions(weights=weights, kv_bytes=1 << 22, threads=1))
        try:
            assert isinstance(llm.runner, NativeRunner)
            num_bytes[weights] = llm.runner.weight_bytes
            prepared = llm.prepare_completion("weather", SamplingParams(max_tokens=4, temperature=0.0))
            assert list(llm.events(prepared))
        finally:
            llm.close()
    assert num_bytes["w8"] == make_runner(config, scheme).weight_bytes < num_bytes["fp32"] / 5
