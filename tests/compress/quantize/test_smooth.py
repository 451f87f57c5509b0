"""SmoothQuant: the scale by hand, and planted outliers that 8-bit inputs alone cannot bear."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smelt.compress.quantize import grid
from smelt.compress.quantize.activations import rounded_inputs, scales_of_tokens
from smelt.compress.quantize.smooth import smoothing_scale
from smelt.core.quantization import ActivationFormat, WeightFormat


def test_scale_by_hand() -> None:
    largest = torch.tensor([16.0, 1.0, 4.0])
    weights = [torch.tensor([[1.0, 0.25, 0.0], [-4.0, 0.1, 0.0]]), torch.tensor([[0.5, -1.0, 0.0]])]
    half = smoothing_scale(largest, weights, strength=0.5)
    torch.testing.assert_close(half, torch.tensor([4.0 / 2.0, 1.0, 1.0]))  # a channel no weight reads stays
    most = smoothing_scale(largest, weights, strength=0.75)
    torch.testing.assert_close(most, torch.tensor([16.0**0.75 / 4.0**0.25, 1.0, 1.0]))
    assert smoothing_scale(torch.zeros(3), weights).tolist() == [1.0, 1.0, 1.0]  # never used: nothing to hand over


def _w8a8(rows: Tensor, weight: Tensor) -> Tensor:
    """The output with weights by rows and inputs by tokens in 8 bits."""
    inputs, form = ActivationFormat(), WeightFormat(bits=8)
    spread = grid.scales(weight, form)
    rounded = grid.dequantized(grid.codes(weight, *spread, form), *spread, form)
    return rounded_inputs(rows, *scales_of_tokens(rows, inputs), inputs) @ rounded.T


@pytest.mark.parametrize("strength", [0.5, 0.65, 0.8])
def test_planted_outliers_cost_less_than_half(strength: float) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 96, generator=draw, dtype=torch.float64)
    rows[:, [5, 40, 77]] *= 80.0
    weight = torch.randn(48, 96, generator=draw, dtype=torch.float64)
    wanted = rows @ weight.T
    scale = smoothing_scale(rows.abs().amax(0), [weight], strength=strength)
    torch.testing.assert_close((rows / scale) @ (weight * scale).T, wanted)
    plain = (_w8a8(rows, weight) - wanted).square().mean()
    smooth = (_w8a8(rows / scale, weight * scale) - wanted).square().mean()
    assert float(smooth) < 0.5 * float(plain)
