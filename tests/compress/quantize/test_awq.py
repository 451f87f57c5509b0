"""AWQ: scales that change nothing before rounding and help after it; the clip search against its slow twin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smelt.compress.quantize import awq, grid
from smelt.compress.quantize.fold import folds, scale_inputs
from smelt.core.decoder import DecoderConfig, Family, LayerConfig
from smelt.core.quantization import WeightFormat
from smelt.model.decoder import Decoder
from tests.tiny import random_tensors, tiny_config, variants

_FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_EVERY_HEAD_ITS_OWN = {f"{family}, no groups": tiny_config(family, num_kv_heads=4) for family in _FAMILIES}
_PLAIN = {name: config for name, config in variants().items() if config.plain}


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("config", (_PLAIN | _EVERY_HEAD_ITS_OWN).values(), ids=(_PLAIN | _EVERY_HEAD_ITS_OWN).keys())
def test_folding_any_scale_is_a_no_op_on_logits(config: DecoderConfig) -> None:
    """Norm gains with their offset, biases of makers, Gemma's norms behind and in front of the MLP."""
    model = Decoder.from_tensors(config, random_tensors(config)).double()
    ids = torch.arange(2, 42).view(2, 20) % config.vocab_size
    with torch.no_grad():
        before = model(ids)
        for index, layer in enumerate(model.model.layers):
            found = folds(config, index)
            assert len(found) == (4 if config.num_kv_heads == config.num_heads else 3)
            for number, fold in enumerate(found):
                width = layer.get_submodule(fold.users[0]).weight.shape[1]
                weights = [layer.get_submodule(name).weight.clone() for name in fold.users]
                scale_inputs(layer, fold, _drawn(width, seed=10 * index + number).exp())
                assert not torch.equal(layer.get_submodule(fold.users[0]).weight, weights[0])
        after = model(ids)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


def test_single_precision_folds_within_the_bar() -> None:
    config = tiny_config("gemma3_text", num_kv_heads=4)
    model = Decoder.from_tensors(config, random_tensors(config))
    ids = torch.arange(2, 42).view(2, 20)
    with torch.no_grad():
        before = model(ids)
        for index, layer in enumerate(model.model.layers):
            for fold in folds(config, index):
                width = layer.get_submodule(fold.users[0]).weight.shape[1]
                scale_inputs(layer, fold, awq.activation_scale(_drawn(width, seed=index).abs().float(), 0.7))
        assert float((model(ids) - before).abs().max()) < 1e-5


def test_shared_layers_and_residues_have_no_place_to_fold() -> None:
    """A norm in front of a shared matrix is not the only one there; a residue reads the same inputs unscaled."""
    shared = tiny_config("llama", layers=(LayerConfig(), LayerConfig(weights=0), LayerConfig(residue_rank=2)))
    assert [folds(shared, i) for i in range(3)] == [(), (), ()]


def _output_error(rows: Tensor, weight: Tensor) -> Callable[[awq.Weights], float]:
    def error(weights: awq.Weights) -> float:
        return float((rows @ (weights["w"] - weight).T).square().mean())

    return error


def _rounding(form: WeightFormat) -> Callable[[Tensor], Tensor]:
    def rounded(weight: Tensor) -> Tensor:
        spread = grid.scales(weight, form)
        return grid.dequantized(grid.codes(weight, *spread, form), *spread, form)

    return rounded


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.sampled_from([3, 4]), group=st.sampled_from([None, 8, 12]))
def test_never_above_rounding(seed: int, bits: int, group: int | None) -> None:
    """Ratio 0 is among the tried: it is rounding itself."""
    form = WeightFormat(bits=bits, group_size=group)
    rows = _drawn(60, 24, seed=seed) * _drawn(24, seed=seed + 1).exp()
    weight = _drawn(8, 24, seed=seed + 2)
    error = _output_error(rows, weight)
    found = awq.search_scale({"w": weight}, rows.abs().mean(0), rounded=_rounding(form), error=error)
    assert found.plain_error == pytest.approx(error({"w": _rounding(form)(weight)}))
    assert found.error <= found.plain_error
    assert error({"w": _rounding(form)(weight * found.scale) / found.scale}) == pytest.approx(found.error)


def test_ratio_zero_scales_nothing() -> None:
    assert torch.equal(awq.activation_scale(_drawn(9).abs(), 0.0), torch.ones(9, dtype=torch.float64))


def test_planted_outlier_channel_costs_less_than_half_of_rounding() -> None:
    rows = _drawn(400, 64)
    rows[:, 17] *= 60.0
    weight, form = _drawn(32, 64, seed=1), WeightFormat(bits=4, group_size=32)
    error = _output_error(rows, weight)
    found = awq.search_scale({"w": weight}, rows.abs().mean(0), rounded=_rounding(form), error=error)
    assert found.ratio > 0
    assert found.error < 0.5 * found.plain_error


@pytest.mark.parametrize("form", [WeightFormat(bits=4, group_size=8), WeightFormat(bits=3, symmetric=False)])
@pytest.mark.parametrize("width", [24, 27])  # 27: a last group of 3
def test_clip_search_is_the_best_of_all_tried_ranges_by_rows(form: WeightFormat, width: int) -> None:
    """The slow twin holds the rows, takes every group by itself and rounds every range of it."""
    rows, weight = _drawn(50, width) * _drawn(width, seed=3).exp(), _drawn(6, width, seed=1)
    weight[2, 5] *= 8.0
    scales, zeros = awq.output_clip(weight, 2 * rows.T @ rows / len(rows), form)
    size = form.group_size or width
    for number, start in enumerate(range(0, width, size)):
        part = slice(start, min(start + size, width))
        for row in range(6):
            group = weight[row, part]
            tried = []
            for step in range(11):
                share = 1.0 - step / 20
                low, high = group.min().clamp(max=0) * share, group.max().clamp(min=0) * share
                scale, zero = grid.scales_of_range(low, high, form)
                change = grid.values_of(grid.codes_of(group, scale, zero, form), scale, zero) - group
                tried.append((float((rows[:, part] @ change).square().mean()), float(scale)))
            assert float(scales[row, number]) in [s for e, s in tried if e <= min(tried)[0] * (1 + 1e-9)]
    assert (zeros is None) == form.symmetric
    whole = grid.scales(weight, form)[0]
    assert float(scales[2].min()) < float(whole[2].max())
    assert bool((scales <= whole).all())
