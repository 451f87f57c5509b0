"""Fake quantization computes what is stored, to the bit, and lets gradients through where codes are not clipped."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smelt.compress.quantize import grid
from smelt.compress.quantize.fake import fake_inputs, fake_weight, faked, noisy_weight, rounded
from smelt.compress.quantize.grid import MINMAX, Clip
from smelt.compress.quantize.rtn import formats, with_rounded
from smelt.compress.quantize.rtn import rounded as rounded_model
from smelt.core.quantization import ActivationFormat, Scheme, WeightFormat
from smelt.model.decoder import Decoder
from tests.compress.quantize.test_grid import FORMATS, weights
from tests.tiny import random_tensors, tiny_config, variants

W4 = Scheme(weights=WeightFormat(bits=4, group_size=16), head=WeightFormat(bits=8, group_size=16))


def decoder(name: str = "gemma3", **changes: object) -> Decoder:
    config = dataclasses.replace(variants()[name], **changes)
    return Decoder.from_tensors(config, random_tensors(config))


def ids(model: Decoder) -> Tensor:
    return torch.randint(0, model.config.vocab_size, (2, 11), generator=torch.Generator().manual_seed(0))


@settings(max_examples=120, deadline=None)
@given(weights(), FORMATS, st.sampled_from(["minmax", "mse", "deviations"]))
def test_fake_is_real_bit_for_bit(weight: Tensor, format: WeightFormat, kind: str) -> None:
    clip = Clip(kind=kind, num_steps=8, deviations=2.0)
    trained = weight.clone().requires_grad_()
    fake = fake_weight(trained, grid.scales(weight, format, clip), format)
    real = grid.quantized(weight, format, clip).dequantized()
    assert np.array_equal(fake.detach().numpy().view(np.int32), real.view(np.int32))


def test_the_gradient_is_one_inside_and_nothing_outside() -> None:
    format = WeightFormat(bits=4)
    # In steps: codes reach from -8 to 7, half a step more at each end still has its nearest code there.
    x = torch.tensor([-100.0, -8.6, -8.5, -8.4, 0.0, 3.3, 7.4, 7.5, 7.6, 100.0]) * 0.25
    x.requires_grad_()
    upstream = torch.arange(1.0, 11.0)
    rounded(x, torch.tensor(0.25), None, format).backward(upstream)
    assert x.grad is not None
    assert (x.grad / upstream).tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    shifted = torch.tensor([-3.0, -0.4, 15.4, 16.0], requires_grad=True)
    rounded(shifted, torch.tensor(1.0), torch.tensor(-8, dtype=torch.int8), format).sum().backward()
    assert shifted.grad is not None and shifted.grad.tolist() == [0, 1, 1, 0]


def test_every_weight_learns_where_nothing_is_clipped() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for symmetric in (True, False):
        format = WeightFormat(bits=3, group_size=8, symmetric=symmetric)
        weight.grad = None
        fake_weight(weight, grid.scales(weight.detach(), format), format).sum().backward()
        assert weight.grad is not None and (weight.grad == 1).all()  # type: ignore[redundant-expr]


@pytest.mark.parametrize("name", list(variants()))
def test_a_faked_decoder_is_the_stored_one(name: str) -> None:
    """Every family, tied and untied, biases: same names, and logits to the last bit."""
    model = decoder(name)
    fake = faked(model, W4)
    assert [n for n, _ in fake.named_parameters()] == [n for n, _ in model.named_parameters()]
    stored = rounded_model(model.config, model.tensors(), W4)
    assert set(stored) == set(formats(model.config, W4))
    twin = Decoder.from_tensors(model.config, with_rounded(model.tensors(), stored))
    with torch.no_grad():
        given_ = ids(model)
        assert torch.equal(fake(given_), twin(given_))
        assert not torch.equal(fake(given_), model(given_))
        fake.moment.rounds = False
        assert torch.equal(fake(given_), model(given_))


def test_the_head_stays_without_a_format_of_its_own() -> None:
    model = decoder("llama")
    fake = faked(model, Scheme(weights=WeightFormat(bits=4)))
    assert torch.equal(fake.head_weight, model.head_weight)
    assert set(formats(model.config, Scheme())) == {
        n for n, _ in model.named_parameters() if n.endswith("_proj.weight")
    }


def test_gradients_reach_every_parameter() -> None:
    model = decoder("gemma3")
    fake = faked(model, dataclasses.replace(W4, activations=ActivationFormat()))
    fake(ids(model)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in fake.parameters())
    assert all(p.grad is None for p in model.parameters())  # a copy


def test_scales_follow_the_weights() -> None:
    """A cached scale must not outlive an update in place, which is how the optimizer and a resume write."""
    model = decoder("llama")
    fake = faked(model, W4)
    with torch.no_grad():
        before = fake(ids(model))
        for parameter in fake.parameters():
            parameter.detach().mul_(3.0)
        fresh = faked(Decoder.from_tensors(model.config, fake.tensors()), W4)
        assert torch.equal(fake(ids(model)), fresh(ids(model)))
        assert not torch.equal(fake(ids(model)), before)


def test_integer_inputs_by_token_and_by_tensor() -> None:
    x = torch.tensor([[1.0, 0.3], [100.0, -0.2]])
    by_token = fake_inputs(x, ActivationFormat(), None)
    assert by_token[0].tolist() == pytest.approx([1.0, round(0.3 * 127) / 127])
    by_tensor = fake_inputs(x, ActivationFormat(dynamic=False), (0.5, 0))
    assert by_tensor.tolist() == [[1.0, 0.5], [63.5, 0.0]]  # 100 is beyond 127 steps
    shifted = fake_inputs(x, ActivationFormat(dynamic=False, symmetric=False), (0.5, -100))
    assert shifted.tolist() == [[1.0, 0.5], [100.0, 0.0]]


def test_noise_is_one_step_wide_and_known() -> None:
    format = WeightFormat(bits=4, group_size=50)
    weight = torch.randn(40, 100, generator=torch.Generator().manual_seed(0))
    scales, _ = grid.scales(weight, format)
    noise = noisy_weight(weight, scales, format, torch.Generator().manual_seed(3)) - weight
    in_steps = noise.view(40, 2, 50) / scales[..., None]
    assert in_steps.abs().max() <= 0.5 + 1e-5
    assert in_steps.mean().abs() < 0.02
    assert in_steps.std() == pytest.approx(12**-0.5, rel=0.02)  # a uniform distribution of width 1
    again = noisy_weight(weight, scales, format, torch.Generator().manual_seed(3)) - weight
    assert torch.equal(noise, again)


def test_noise_changes_with_the_step_and_not_within_it() -> None:
    model = decoder("llama")

    def logits(step: int, seed: int = 5) -> Tensor:
        fake = faked(model, W4, noise="all", seed=seed)
        fake.moment.step = step
        with torch.no_grad():
            first, second = fake(ids(model)), fake(ids(model))
        assert torch.equal(first, second)
        return first

    assert torch.equal(logits(7), logits(7))  # another decoder, as after a kill
    assert not torch.equal(logits(7), logits(8))
    assert not torch.equal(logits(7), logits(7, seed=6))


def test_noise_on_shared_matrices_alone() -> None:
    plain = tiny_config("llama", num_layers=3)
    layers = (plain.layers[0], plain.layers[1], dataclasses.replace(plain.layers[2], weights=1))
    config = dataclasses.replace(plain, layers=layers)
    model = Decoder.from_tensors(config, random_tensors(config))
    fake = faked(model, W4, noise="shared")
    noisy = {
        name
        for name, module in fake.named_modules()
        if getattr(getattr(module, "matrix", None), "noise_seed", None) is not None
    }
    assert {name.split(".")[2] for name in noisy} == {"1", "2"} and len(noisy) == 14
    shared = fake.model.layers[1].mlp.up_proj.weight
    assert shared is fake.model.layers[2].mlp.up_proj.weight
    twin = Decoder.from_tensors(config, with_rounded(model.tensors(), rounded_model(config, model.tensors(), W4)))
    with torch.no_grad():
        assert torch.equal(faked(model, W4)(ids(model)), twin(ids(model)))
    assert faked(model, W4, clip=MINMAX).config == config
