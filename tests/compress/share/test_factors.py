"""The shared matrix and what is left of each layer, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.compress.share.factors import energy, low_rank, shared_matrix


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 12), cols=st.integers(1, 12), rank=st.integers(1, 14), seed=st.integers(0, 99))
def test_no_product_of_that_rank_is_nearer(rows: int, cols: int, rank: int, seed: int) -> None:
    """Eckart and Young: what is lost is the energy of the singular values beyond the rank."""
    wide = matrix(rows, cols, seed=seed)
    expand, reduce = low_rank(wide, rank)
    kept = min(rank, rows, cols)
    assert expand.shape == (rows, kept) and reduce.shape == (kept, cols)
    values = torch.linalg.svdvals(wide)
    assert energy(wide - expand @ reduce) == pytest.approx(energy(values[kept:]), abs=1e-10)
    for factor in (expand, reduce):  # equally large, so that an optimizer finds no side steeper
        torch.testing.assert_close(torch.linalg.svdvals(factor), values[:kept].sqrt(), atol=1e-5, rtol=1e-5)


def test_nothing_and_little_are_no_trouble() -> None:
    expand, reduce = low_rank(torch.zeros(5, 3), 2)
    assert expand.isfinite().all() and energy(expand @ reduce) == 0
    thin = matrix(6, 1) @ matrix(1, 4)  # of rank 1, asked for 3
    expand, reduce = low_rank(thin, 3)
    assert energy(thin - expand @ reduce) < 1e-20 and reduce.abs().max() < 10


def test_the_mean_loses_least() -> None:
    weights = matrix(3, 4, 5)
    mean = shared_matrix(weights, "mean")
    assert torch.equal(shared_matrix(weights, "first"), weights[0])
    least = energy(weights - mean)
    for seed in range(5):
        assert energy(weights - mean - 0.1 * matrix(4, 5, seed=seed)) > least
