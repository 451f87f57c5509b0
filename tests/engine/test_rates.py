"""Predicted speed against measured speed, on the model that is shipped."""

from __future__ import annotations

import time
from random import Random

import pytest

from smelt.core.cost import decode_seconds
from smelt.engine.rates import matmul_gflops, measure_rates, step_seconds

POSITION = 64


@pytest.fixture(scope="module")
def shipped() -> object:
    from smelt.cli.load import load_engine

    return load_engine("spark", threads=1)


def test_the_shipped_model_decodes_as_fast_as_predicted(shipped: object) -> None:
    """Within 1.6 in one of a few tries: single steps on one thread, whose median a busy machine hardly moves."""
    engine, config, _ = shipped  # type: ignore[misc]
    ratios = []
    for attempt in range(5):
        rates = measure_rates(config, threads=1)
        measured_s = step_seconds(engine, POSITION, config.vocab_size, Random(attempt))
        ratios.append(measured_s / decode_seconds(config, rates, POSITION + 16))
        if 1 / 1.6 < ratios[-1] < 1.6:
            return
    pytest.fail(f"measured against predicted seconds a token: {ratios}")


def test_measuring_takes_little_time_and_gives_plausible_rates(shipped: object) -> None:
    _, config, _ = shipped  # type: ignore[misc]
    start = time.process_time()
    rates, products = measure_rates(config), matmul_gflops()
    assert time.process_time() - start < 4.0
    assert 0.5 < rates.read_gb_s < 5000 and 1 < rates.multiply_gops < 100_000
    assert 0.1 < rates.attention_gflops < 10_000 and 1e-6 < rates.step_s < 0.05
    assert 1 < products < 100_000
