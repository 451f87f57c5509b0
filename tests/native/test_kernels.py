"""The matrix kernels against numpy, over odd shapes, on every instruction set of this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smelt.core.sampling import counter_uniform
from smelt.native.extension import core

F32 = NDArray[np.float32]
ISAS = [isa for isa in ("portable", "avx2", "avx512vnni", "avxvnni") if core().has_isa(isa)]
GROUP = 32

shapes = st.tuples(st.integers(1, 40), st.integers(1, 150), st.integers(1, 12))  # rows, k, tokens
seeds = st.integers(0, 2**32 - 1)


def _operands(shape: tuple[int, int, int], seed: int) -> tuple[F32, F32]:
    rows, k, num_tokens = shape
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(size=(1, k)) * 2)  # groups of very different size
    weights = (rng.normal(size=(rows, k)) / scales).astype(np.float32)
    return weights, (rng.normal(size=(num_tokens, k)) * scales).astype(np.float32)


def _multiply(weights: F32, x: F32, *, quantized: bool, isa: str) -> F32:
    found: F32 = core().multiply(weights, x, quantized, isa)
    return found


def _grouped(x: F32) -> NDArray[np.float64]:
    """[n, k] -> [n, groups, 32], padded with zeros."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP)))
    return padded.reshape(len(x), -1, GROUP).astype(np.float64)


def _rounded_weights(weights: F32) -> NDArray[np.float64]:
    """The 8-bit format's slow twin: codes -128..127 times a bfloat16 scale per row and group of 32."""
    groups = _grouped(weights)
    step = (np.abs(groups).max(-1) / 127.5).astype(np.float32)
    step = ((step.view(np.uint32) + 0xFFFF) & 0xFFFF0000).view(np.float32)  # up to a bfloat16
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
    codes = np.rint(groups.astype(np.float32) * inverse[..., None]).clip(-128, 127)
    return codes * step[..., None]


def _rounded_activations(x: F32) -> NDArray[np.float64]:
    groups = _grouped(x).astype(np.float32)
    most = np.abs(groups).max(-1)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return (
        np.rint(groups * inverse[..., None]).astype(np.float64) * (most / np.float32(127)).astype(np.float64)[..., None]
    )


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None)
@given(shape=shapes, seed=seeds)
def test_float_product_is_numpys(isa: str, shape: tuple[int, int, int], seed: int) -> None:
    weights, x = _operands(shape, seed)
    want = x.astype(np.float64) @ weights.T.astype(np.float64)
    size = np.abs(x) @ np.abs(weights.T) + 1e-30
    assert np.max(np.abs(_multiply(weights, x, quantized=False, isa=isa) - want) / size) < 2e-6


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None)
@given(shape=shapes, seed=seeds)
def test_8bit_product_is_that_of_the_rounded_operands(isa: str, shape: tuple[int, int, int], seed: int) -> None:
    weights, x = _operands(shape, seed)
    w, a = _rounded_weights(weights), _rounded_activations(x)
    want = np.einsum("ngk,tgk->tn", w, a)
    size = np.einsum("ngk,tgk->tn", np.abs(w), np.abs(a)) + 1e-30
    found = _multiply(weights, x, quantized=True, isa=isa)
    assert np.max(np.abs(found - want) / size) < 2e-6


@settings(deadline=None)
@given(shape=shapes, seed=seeds)
def test_8bit_error_is_small(shape: tuple[int, int, int], seed: int) -> None:
    """Half a step of 255 for weights and of 254 for activations, relative to each group's largest value."""
    weights, x = _operands(shape, seed)
    w, a = np.abs(_grouped(weights)), np.abs(_grouped(x))
    bound = np.einsum("ng,tgk->tn", w.max(-1) / 250, a) + np.einsum("ngk,tg->tn", w, a.max(-1) / 250) + 1e-30
    error = np.abs(_multiply(weights, x, quantized=True, isa=ISAS[0]) - x.astype(np.float64) @ weights.T)
    assert np.all(error <= bound * 1.05)


@pytest.mark.parametrize("quantized", [False, True])
@settings(deadline=None)
@given(shape=shapes, seed=seeds, isa=st.sampled_from(ISAS))
def test_a_token_does_not_see_its_tile(quantized: bool, shape: tuple[int, int, int], seed: int, isa: str) -> None:
    """Bitwise: a product computed alone is the product computed beside others, whatever tiles they fall in."""
    weights, x = _operands(shape, seed)
    together = _multiply(weights, x, quantized=quantized, isa=isa)
    for t in range(len(x)):
        assert np.array_equal(_multiply(weights, x[t : t + 1], quantized=quantized, isa=isa)[0], together[t])


@settings(deadline=None)
@given(shape=shapes, seed=seeds)
def test_integer_part_is_the_same_on_every_instruction_set(shape: tuple[int, int, int], seed: int) -> None:
    """Operands whose scales are powers of two make every float operation exact: what is left is the integer sum."""
    rows, k, num_tokens = shape
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, (rows, k))
    x = rng.integers(-127, 128, (num_tokens, k)).astype(np.float32)
    codes[:, ::GROUP], x[:, ::GROUP] = -128, 127
    weights = (codes / 64).astype(np.float32)
    weights[:, ::GROUP] = -127.5 / 64  # every group's largest, so that its step is 1/64: stored as -128 steps
    want = (x @ codes.T.astype(np.float32)) / 64
    for isa in ISAS:
        assert np.array_equal(_multiply(weights, x, quantized=True, isa=isa), want), isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_activation_is_never_rounded_away(isa: str, bad: float) -> None:
    """An 8-bit code cannot hold NaN: its group's scale must, or a broken model would answer with confidence."""
    weights, x = _operands((9, 70, 3), 0)
    x[1, 40] = bad
    found = _multiply(weights, x, quantized=True, isa=isa)
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-33, 1e30])
def test_extreme_sizes_stay_finite(size: float) -> None:
    weights, x = _operands((8, 64, 2), 1)
    for w, a in ((weights * np.float32(size), x), (weights, x * np.float32(size))):
        assert np.isfinite(_multiply(w, a, quantized=True, isa=ISAS[-1])).all()


@given(seed=st.integers(0, 2**64 - 1), draw=st.integers(0, 2**64 - 1))
def test_uniform_numbers_are_the_contracts_bits(seed: int, draw: int) -> None:
    assert core().counter_uniform(seed, draw) == counter_uniform(seed, draw)


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    one: Any = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="instruction set avx9000 is not one this processor has"):
        _multiply(one, one, quantized=False, isa="avx9000")
