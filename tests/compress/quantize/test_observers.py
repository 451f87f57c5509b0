"""Observers reproduce ranges computed by hand, in any order of the batches and from any parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smelt.compress.quantize.activations import (
    codes_of_inputs,
    rounded_inputs,
    scale_of_tensor,
    scales_of_tokens,
)
from smelt.compress.quantize.observers import NUM_BINS, Average, Entropy, LeastError, MinMax, Percentile, make_observer
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import ActivationFormat

KINDS = ["minmax", "average", "percentile", "mse", "entropy"]


def test_minmax_by_hand() -> None:
    seen = MinMax()
    seen.update(torch.tensor([1.0, 3.0]))
    assert seen.range() == (0.0, 3.0)  # 0 is always in it
    seen.update(torch.tensor([[-2.0], [2.5]]))
    assert seen.range() == (-2.0, 3.0)


def test_average_by_hand() -> None:
    seen = Average(rate=0.5)
    for values in ([-1.0, 1.0], [-3.0, 5.0], [-2.0, 11.0]):
        seen.update(torch.tensor(values))
    # The mean of the first two, then half of what is and half of what comes.
    assert seen.range() == (-2.0, 7.0)


def test_average_of_parts() -> None:
    batches = [torch.tensor([-float(i), 2.0 * i]) for i in range(1, 8)]
    whole, first, second = Average(), Average(), Average()
    for i, batch in enumerate(batches):
        whole.update(batch)
        (first if i < 3 else second).update(batch)
    first.merge(second.state())
    assert first.range() == pytest.approx(whole.range())
    assert whole.range() == pytest.approx((-4.0, 8.0))


@pytest.mark.parametrize("percent", [99.0, 99.9])
def test_percentile_cuts_as_many_values_as_it_says(percent: float) -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0)) + 0.5
    seen = Percentile(percent)
    seen.update(values)
    num_cut = round((100 - percent) / 200 * len(values))
    ordered = values.sort().values
    expected = np.array([ordered[num_cut], ordered[-1 - num_cut]])
    outwards = (np.array(seen.range()) - expected) * [-1, 1]
    assert (outwards >= 0).all() and (outwards < 8.0 / NUM_BINS).all()  # the largest lies between 4 and 8


def test_percentile_by_hand() -> None:
    seen = Percentile(80.0)
    seen.update(torch.arange(-50, 50) / 128.0)  # ten go at each end: what is left is -40 .. 39
    assert seen.range() == (-40 / 128, 39 / 128 + 0.5 / NUM_BINS)


def test_least_error_is_brute_force() -> None:
    format = ActivationFormat(bits=4, observer="mse")
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    values[0] = 12.0
    seen = LeastError(format)
    seen.update(values)

    def error(reach: float) -> float:
        scale = torch.tensor(reach / 7)
        return float((values - rounded_inputs(values, scale, None, format)).square().sum())

    lowest, highest = seen.range()
    assert lowest >= -highest and highest < 0.5 * 12.0  # at 4 bits one outlier in 4000 is worth clipping
    assert error(highest) <= 1.02 * min(error(12.0 * i / 100) for i in range(1, 101))


def test_entropy_cuts_a_lone_outlier_and_nothing_of_a_flat_distribution() -> None:
    flat, spiked = (Entropy(ActivationFormat(observer="entropy")) for _ in range(2))
    flat.update(torch.linspace(-1, 1, 100_001))
    assert flat.range() == pytest.approx((-1.0, 1.0), abs=0.02)
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[7] = 60.0
    spiked.update(values)
    assert 3.0 < spiked.range()[1] < 12.0


def test_entropy_by_hand() -> None:
    """Two codes, four bins: cut at two, all is told but what lies beyond; with four, neighbours become alike."""
    from smelt.compress.quantize.observers import _lost

    counts = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    whole = [(1 / 2, 3 / 8), (1 / 4, 3 / 8), (1 / 8, 1 / 8), (1 / 8, 1 / 8)]
    assert _lost(counts, 4, 2) == pytest.approx(sum(p * math.log(p / q) for p, q in whole))
    cut = [(1 / 2, 2 / 3), (1 / 2, 1 / 3)]
    assert _lost(counts, 2, 2) == pytest.approx(sum(p * math.log(p / q) for p, q in cut))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from([1e-9, 0.01, 1.0, 4.0, 3e4])), min_size=1, max_size=6))
def test_histograms_do_not_depend_on_the_order(parts: list[tuple[int, float]]) -> None:
    def batch(seed: int, size: float) -> Tensor:
        values = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * size
        return torch.cat([values, torch.tensor([size, -size, 0.0])])  # edges of bins

    format = ActivationFormat(observer="entropy")
    forward, merged = make_observer(format), make_observer(format)
    for seed, size in parts:
        forward.update(batch(seed, size))
    for seed, size in reversed(parts):
        alone = make_observer(format)
        alone.update(batch(seed, size))
        merged.merge(alone.state())
    ours, theirs = forward.state(), merged.state()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert ours["counts"].sum() == 43 * len(parts)
    assert forward.range() == merged.range()


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_on_where_it_stood(kind: str) -> None:
    format = ActivationFormat(dynamic=False, observer=kind)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(100, generator=generator) * size for size in (1.0, 0.1, 5.0)]
    whole, first, resumed = (make_observer(format) for _ in range(3))
    for batch in batches:
        whole.update(batch)
    first.update(batches[0])
    resumed.merge(first.state())
    for batch in batches[1:]:
        resumed.update(batch)
    assert resumed.range() == pytest.approx(whole.range(), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_seen_is_an_error_and_zeros_are_none(kind: str) -> None:
    seen = make_observer(ActivationFormat(observer=kind))
    with pytest.raises(InvalidRequestError, match="no activation was seen"):
        seen.range()
    seen.update(torch.zeros(0, 4))
    seen.update(torch.zeros(3, 4))
    assert scale_of_tensor(*seen.range(), ActivationFormat()) == (1.0, 0)


def test_activations_that_are_no_numbers() -> None:
    with pytest.raises(InvalidRequestError, match="no numbers"):
        make_observer(ActivationFormat(observer="mse")).update(torch.tensor([1.0, float("nan")]))
    with pytest.raises(InvalidRequestError, match="percentile of 12"):
        make_observer(ActivationFormat(observer="percentile", percentile=12.0))


def test_scales_by_hand() -> None:
    assert scale_of_tensor(-254.0, 100.0, ActivationFormat()) == (2.0, 0)
    assert scale_of_tensor(-10.0, 245.0, ActivationFormat(symmetric=False)) == (1.0, -118)
    x = torch.tensor([[127.0, -63.4, 0.0], [0.0, 0.0, 0.0], [-2.54, 0.02, 1.0]])
    scale, zero = scales_of_tokens(x, ActivationFormat())
    assert zero is None
    assert scale.flatten().tolist() == pytest.approx([1.0, 1.0, 0.02])
    assert codes_of_inputs(x, scale, zero, ActivationFormat()).tolist() == [[127, -63, 0], [0, 0, 0], [-127, 1, 50]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.booleans(), st.sampled_from([1e-42, 1e-6, 1.0, 1e6]))
def test_a_token_is_off_by_half_its_step_at_most(seed: int, symmetric: bool, size: float) -> None:
    format = ActivationFormat(symmetric=symmetric)
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(seed)) * size
    scale, zero = scales_of_tokens(x, format)
    assert ((x - rounded_inputs(x, scale, zero, format)).abs() <= scale * 0.5001).all()
