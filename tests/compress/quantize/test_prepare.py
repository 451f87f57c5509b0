"""prepare, calibrate, convert: what a user calls, and the integer arithmetic it stands for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from smelt.checkpoint.quantized import QuantizedWeight
from smelt.compress.quantize import prepare, rtn
from smelt.compress.quantize.activations import codes_of_inputs, scales_of_tokens
from smelt.compress.quantize.grid import MINMAX, Clip, quantized
from smelt.compress.quantize.integer import integer_linear
from smelt.compress.quantize.prepare import Prepared
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import ActivationFormat, Scheme, WeightFormat
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from tests.tiny import random_tensors, tiny_config

STATIC = ActivationFormat(dynamic=False)
SCHEMES = {
    "w8": Scheme(weights=WeightFormat(bits=8)),
    "w4": Scheme(weights=WeightFormat(bits=4, group_size=16, symmetric=False), head=WeightFormat(bits=8)),
    "w8a8": Scheme(weights=WeightFormat(bits=8), activations=ActivationFormat()),
    "w4a8": Scheme(weights=WeightFormat(bits=4, group_size=16), activations=ActivationFormat(symmetric=False)),
    "static": Scheme(weights=WeightFormat(bits=8), activations=STATIC),
    "static shifted": Scheme(
        weights=WeightFormat(bits=8, group_size=16, symmetric=False),
        head=WeightFormat(bits=8),
        activations=ActivationFormat(dynamic=False, symmetric=False, observer="percentile"),
    ),
}


def decoder(family: str = "qwen2", **changes: object) -> Decoder:
    config = tiny_config(family, **changes)  # type: ignore[arg-type]
    return Decoder.from_tensors(config, random_tensors(config))


def batches(num: int = 3) -> list[Batch]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(num):
        rows = rng.integers(0, 96, (2, 13))
        segments = np.array([[0] * 12, [0] * 5 + [1] * 4 + [-1] * 3], np.int32)
        targets = np.where(segments >= 0, rows[:, 1:], -100)
        found.append(Batch(rows[:, :-1], targets, segment_ids=segments))
    return found


def prepared(scheme: Scheme, model: Decoder | None = None) -> Prepared:
    return prepare.prepare(model or decoder(), scheme).calibrate(batches())


@pytest.mark.parametrize("name", SCHEMES)
def test_fake_and_integer_decoders_agree(name: str) -> None:
    """The float twin, the integer twin and the model in float64: as near to each other as the sums' rounding."""
    scheme = SCHEMES[name]
    found = prepared(scheme, decoder("qwen2" if name != "static" else "gemma3_text"))
    ids = torch.from_numpy(batches(1)[0].inputs)
    with torch.no_grad():
        fake, integer = found.faked().double()(ids), found.integer().double()(ids)
        plain = found.model(ids)
    distance = float((fake - integer).abs().max())
    # Sums in another order may lead an input to the next code; without integer inputs there are none.
    assert distance < (1e-4 if scheme.activations else 1e-9)
    assert distance < 0.01 * float((fake - plain).abs().max())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 8, 7])
def test_a_static_linear_is_the_integer_formula(symmetric: bool, group_size: int | None) -> None:
    """(qx - zx) * (qw - zw) * sx * sw, summed a group at a time in integers."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(5, 24, generator=generator), torch.randn(2, 3, 24, generator=generator) + 0.4
    format = WeightFormat(bits=8, group_size=group_size, symmetric=symmetric)
    activations = ActivationFormat(dynamic=False, symmetric=symmetric)
    held = dataclasses.replace(quantized(weight, format), input_scale=0.03125, input_zero=0 if symmetric else -20)
    found = integer_linear(x.double(), held, activations).numpy()
    zero = held.input_zero
    codes_x = np.clip(np.round(x.numpy().astype(np.float64) / 0.03125) + zero, -128, 127).astype(np.int64)
    for row, o in np.ndindex(6, 5):
        total = 0.0
        for start in range(0, 24, group_size or 24):
            part, group = slice(start, start + (group_size or 24)), start // (group_size or 24)
            zero_w = 0 if held.zeros is None else int(held.zeros[o, group])
            one = np.sum((codes_x.reshape(6, 24)[row, part] - zero) * (held.codes[o, part].astype(np.int64) - zero_w))
            total += int(one) * float(held.scales[o, group])
        assert found.reshape(6, 5)[row, o] == pytest.approx(total * 0.03125, rel=1e-12)


def test_integer_sums_equal_products_of_dequantized_numbers() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(6, 20, generator=generator), torch.randn(4, 20, generator=generator, dtype=torch.float64)
    for scheme in (SCHEMES["w8a8"], SCHEMES["w4a8"]):
        assert scheme.activations is not None
        held = quantized(weight, dataclasses.replace(scheme.weights, symmetric=False))
        scale, zero = scales_of_tokens(x, scheme.activations)
        codes = codes_of_inputs(x, scale, zero, scheme.activations).double()
        values = (codes if zero is None else codes - zero) * scale
        expected = values @ torch.from_numpy(held.dequantized()).double().T
        torch.testing.assert_close(integer_linear(x, held, scheme.activations), expected, rtol=1e-6, atol=1e-6)


def test_convert_gives_what_rounding_gives_and_the_scales_of_the_inputs() -> None:
    model = decoder("llama")
    found = prepared(SCHEMES["static"], model)
    converted = found.convert()
    plain = rtn.rounded(model.config, model.tensors(), SCHEMES["static"])
    assert list(converted) == list(plain)
    for name, weight in converted.items():
        assert np.array_equal(weight.codes, plain[name].codes) and np.array_equal(weight.scales, plain[name].scales)
        assert weight.input_scale is not None and weight.input_zero == 0
        assert float(np.float16(weight.input_scale)) == weight.input_scale
    q, k = (converted[f"model.layers.1.self_attn.{x}_proj.weight"].input_scale for x in "qk")
    assert q == k  # they read the same


def test_calibration_sees_the_inputs_of_the_matrix_and_no_padding() -> None:
    """By hand for the first matrix: the normed embeddings of the tokens that are no padding."""
    model = decoder("llama")
    found = prepared(SCHEMES["static"], model)
    largest = 0.0
    for batch in batches():
        ids = torch.from_numpy(batch.inputs)
        with torch.no_grad():
            inputs = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
        largest = max(largest, float(inputs[torch.from_numpy(batch.segment_ids >= 0)].abs().max()))
    lowest, highest = found.observers["model.layers.0.self_attn.q_proj.weight"].range()
    assert max(-lowest, highest) == pytest.approx(largest)


def test_a_shared_matrix_has_one_observer_for_all_its_uses() -> None:
    plain = tiny_config("llama", num_layers=2)
    config = dataclasses.replace(plain, layers=(plain.layers[0], dataclasses.replace(plain.layers[1], weights=0)))
    model = Decoder.from_tensors(config, random_tensors(config))
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.mul_(50.0)
    found = prepared(SCHEMES["static"], model)
    assert len(found.observers) == 7
    alone = prepared(SCHEMES["static"], Decoder.from_tensors(plain, random_tensors(plain)))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert found.observers[name].range()[1] > 10 * alone.observers[name].range()[1]
    ids = torch.from_numpy(batches(1)[0].inputs)
    with torch.no_grad():
        assert float((found.faked()(ids) - found.integer()(ids)).abs().max()) < 1e-3


@pytest.mark.parametrize("observer", ["minmax", "average", "percentile", "mse", "entropy"])
def test_what_was_seen_can_be_kept_and_merged(observer: str) -> None:
    scheme = Scheme(activations=ActivationFormat(dynamic=False, observer=observer))  # type: ignore[arg-type]
    model = decoder("llama", num_layers=1)
    whole = prepare.prepare(model, scheme).calibrate(batches())
    first = prepare.prepare(model, scheme).calibrate(batches()[:1])
    resumed = prepare.prepare(model, scheme)
    resumed.merge(first.state())
    resumed.calibrate(batches()[1:])
    for name, (scale, _) in whole.statics().items():
        assert resumed.statics()[name][0] == pytest.approx(scale, rel=2.0**-7)


def test_calibration_leaves_no_hooks_and_no_change() -> None:
    model = decoder("llama")
    before = model.tensors()
    prepared(SCHEMES["static"], model).faked()
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(np.array_equal(before[name], array) for name, array in model.tensors().items())


def test_static_inputs_are_refused_before_calibration() -> None:
    with pytest.raises(InvalidRequestError, match="no activation was seen"):
        prepare.prepare(decoder(), SCHEMES["static"]).convert()


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        (Scheme(weights=WeightFormat(group_size=20)), "groups of 20 do not divide its 48 inputs"),
        (Scheme(weights=WeightFormat(bits=1)), "1 bits a weight"),
        (Scheme(head=WeightFormat(bits=16)), "16 bits a weight"),
        (Scheme(activations=ActivationFormat(bits=16)), "16 bits an activation"),
    ],
)
def test_schemes_no_folder_holds_are_refused(scheme: Scheme, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        prepare.prepare(decoder(), scheme)


def test_finer_is_nearer() -> None:
    """KL from the full model: 8 bits < 4 bits in groups < 4 bits a row < 3 bits; clipping helps the coarse."""
    model = decoder("llama", hidden_size=64, intermediate_size=128)
    ids = torch.randint(0, 96, (4, 32), generator=torch.Generator().manual_seed(0))

    def divergence(bits: int, group_size: int | None = None, clip: Clip = MINMAX) -> float:
        scheme = Scheme(weights=WeightFormat(bits=bits, group_size=group_size))
        with torch.no_grad():
            p = model(ids).log_softmax(-1)
            q = prepare.prepare(model, scheme, clip=clip).faked()(ids).log_softmax(-1)
        return float((p.exp() * (p - q)).sum(-1).mean())

    ladder = [divergence(8), divergence(4, 16), divergence(4), divergence(3)]
    assert ladder == sorted(ladder) and ladder[0] < ladder[1] / 20
    assert divergence(3, clip=Clip(kind="mse")) < ladder[3]


def test_scales_of_inputs_need_codes() -> None:
    weight: dict[str, QuantizedWeight] = {}
    with pytest.raises(InvalidRequestError, match="no codes"):
        prepare.with_statics(weight, {"model.layers.0.mlp.up_proj.weight": (1.0, 0)})
