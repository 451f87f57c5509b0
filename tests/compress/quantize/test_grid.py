"""The one quantizer: bounds, hand-computed codes, scales that every stored type holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smelt.compress.quantize import grid
from smelt.compress.quantize.grid import Clip
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import WeightFormat

FORMATS = st.builds(
    WeightFormat,
    bits=st.integers(2, 8),
    group_size=st.one_of(st.none(), st.integers(1, 12)),
    symmetric=st.booleans(),
)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """[O, I] float32 with zeros, denormals, groups of equal numbers, tiny and huge rows."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 23))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = rng.standard_normal((rows, width))
    for row in range(rows):
        kind = draw(st.sampled_from(["plain", "zeros", "denormals", "equal", "one-sided", "outlier"]))
        if kind == "zeros":
            array[row] = 0
        elif kind == "denormals":
            array[row] *= 1e-41
        elif kind == "equal":
            array[row] = draw(st.sampled_from([-3.0, 1e-30, 0.1, 7.5]))
        elif kind == "one-sided":
            array[row] = np.abs(array[row])
        elif kind == "outlier":
            array[row, 0] = 1e3
        array[row] *= draw(st.sampled_from([1.0, 1e-3, 1e-7, 50.0]))
    return torch.from_numpy(array.astype(np.float32))


def per_weight(of_groups: Tensor, format: WeightFormat, width: int) -> Tensor:
    return of_groups.repeat_interleave(format.group_size or width, 1)[:, :width]


@settings(max_examples=120, deadline=None)
@given(weights(), FORMATS)
def test_rounding_is_off_by_half_a_step_at_most(weight: Tensor, format: WeightFormat) -> None:
    scales, zeros = grid.scales(weight, format)
    codes = grid.codes(weight, scales, zeros, format)
    values = grid.dequantized(codes, scales, zeros, format)
    step = per_weight(scales, format, weight.shape[1])
    # In float64, and up to the rounding of the float32 division and product themselves.
    error = (weight.double() - values.double()).abs()
    assert (error <= step.double() * (0.5 + 2.0**-16)).all()
    assert codes.min() >= format.lowest and codes.max() <= format.highest
    assert (values[weight == 0] == 0).all()


@settings(max_examples=80, deadline=None)
@given(weights(), FORMATS, st.sampled_from(["minmax", "mse", "deviations"]))
def test_what_a_folder_holds_is_what_the_grid_says(weight: Tensor, format: WeightFormat, kind: str) -> None:
    clip = Clip(kind=kind, num_steps=8, deviations=2.0)
    found = grid.quantized(weight, format, clip)
    scales, zeros = grid.scales(weight, format, clip)
    codes = grid.codes(weight, scales, zeros, format)
    assert np.array_equal(found.codes, codes.numpy())
    assert (found.zeros is None) == format.symmetric
    values = grid.dequantized(codes, scales, zeros, format).numpy()
    assert np.array_equal(found.dequantized().view(np.int32), values.view(np.int32))
    for held in (scales.half(), scales.bfloat16()):
        assert torch.equal(held.float(), scales)
    assert (scales > 0).all()


@settings(max_examples=40, deadline=None)
@given(weights(), FORMATS)
def test_a_column_at_a_time_gives_the_same_codes(weight: Tensor, format: WeightFormat) -> None:
    """What GPTQ does."""
    scales, zeros = grid.scales(weight, format)
    group = format.group_size or weight.shape[1]
    columns = [
        grid.codes_of(weight[:, i], scales[:, i // group], None if zeros is None else zeros[:, i // group], format)
        for i in range(weight.shape[1])
    ]
    assert torch.equal(torch.stack(columns, 1), grid.codes(weight, scales, zeros, format))


def test_symmetric_codes_by_hand() -> None:
    format = WeightFormat(bits=4, group_size=4)
    weight = torch.tensor([[7.5, -7.5, 1.4, -0.5, 0.0, 0.0, 0.0, 0.0, 30.0, 1.0]])
    scales, zeros = grid.scales(weight, format)
    assert scales.tolist() == [[1.0, 1.0, 4.0]]  # 7.5 * 2 / 15, nothing there, 30 * 2 / 15; the last group has two
    assert zeros is None
    # 7.5 rounds to 8, which 4 bits do not have; half a step is lost at both ends.
    assert grid.codes(weight, scales, zeros, format).tolist() == [[7, -8, 1, 0, 0, 0, 0, 0, 7, 0]]


def test_asymmetric_codes_by_hand() -> None:
    format = WeightFormat(bits=4, symmetric=False)
    weight = torch.tensor([[0.0, 3.0, 15.0], [-5.0, 10.0, 0.0], [2.0, 2.0, 2.0]])
    scales, zeros = grid.scales(weight, format)
    assert scales[:2].tolist() == [[1.0], [1.0]]
    assert zeros is not None and zeros.tolist() == [[-8], [-3], [-8]]
    codes = grid.codes(weight, scales, zeros, format)
    assert codes.tolist() == [[-8, -5, 7], [-8, 7, -3], [7, 7, 7]]
    assert grid.dequantized(codes, scales, zeros, format)[:2].tolist() == weight[:2].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_are_rounded_up_to_eight_digits(dtype: torch.dtype) -> None:
    given_ = torch.tensor([1.0, 1.0 + 2.0**-7, 1.0 + 2.0**-12, 0.0, 1e-30, 1e30, 3.2 * 2.0**-24], dtype=dtype)
    expected = [1.0, 1.0 + 2.0**-7, 1.0 + 2.0**-7, 1.0, 2.0**-24, 65280.0, 4 * 2.0**-24]
    assert grid.storable(given_).tolist() == expected


@given(st.floats(2.0**-30, 2.0**20))
def test_storable_is_near_and_never_below(scale: float) -> None:
    found = float(grid.storable(torch.tensor([scale], dtype=torch.float64)))
    bounded = min(max(scale, 2.0**-24), 65280.0)
    assert bounded <= found <= max(bounded * (1 + 2.0**-7), bounded + 2.0**-24)


def test_the_search_never_errs_more_than_the_whole_range() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight[:, 0] *= 8  # an outlier that is worth clipping
    for format in (WeightFormat(bits=3, group_size=32), WeightFormat(bits=3, group_size=32, symmetric=False)):

        def error(clip: Clip, format: WeightFormat = format) -> Tensor:
            values = torch.from_numpy(grid.quantized(weight, format, clip).dequantized())
            return (weight - values).abs().pow(2.4).view(16, 2, 32).sum(-1)

        whole, searched = error(grid.MINMAX), error(Clip(kind="mse"))
        assert (searched <= whole * (1 + 1e-6)).all()
        assert searched.sum() < 0.9 * whole.sum()


def test_deviations_clip_the_row() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 0.0, 40.0]])
    scales, _ = grid.scales(weight, WeightFormat(bits=2), Clip(kind="deviations", deviations=1.5))
    root = (1602 / 4) ** 0.5
    assert scales[0].item() == float(grid.storable(torch.tensor([1.0 / 1.5])))
    assert scales[1].item() == float(grid.storable(torch.tensor([1.5 * root / 1.5])))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 10, generator=torch.Generator().manual_seed(1))
    format = WeightFormat(bits=4, group_size=4, symmetric=False)
    whole = grid.quantized(weight, format)
    monkeypatch.setattr(grid, "_BLOCK_NUMBERS", 25)
    parts = grid.quantized(weight, format)
    assert np.array_equal(whole.codes, parts.codes) and np.array_equal(whole.scales, parts.scales)
    assert whole.zeros is not None and parts.zeros is not None and np.array_equal(whole.zeros, parts.zeros)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e7])
def test_weights_that_no_code_reaches_are_refused(bad: float) -> None:
    with pytest.raises(InvalidRequestError, match="sought finite ones up to"):
        grid.quantized(torch.tensor([[1.0, bad]]), WeightFormat(bits=4))


def test_formats_and_clips_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="sought 2 to 8"):
        grid.quantized(torch.ones(1, 2), WeightFormat(bits=9))
    with pytest.raises(InvalidRequestError, match="groups of 0"):
        grid.quantized(torch.ones(1, 2), WeightFormat(group_size=0))
    with pytest.raises(InvalidRequestError, match="smallest"):
        Clip(smallest=0.0)
