"""Layers that share matrices in the native core: the torch decoder's logits, one copy of the weights."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest

from smelt.native import NativeRunner
from tests.model.test_sharing import SHARING, plain_twin
from tests.native.batches import logits_by_chunks, prompt
from tests.native.test_parity import mean_kl, oracle_logits
from tests.tiny import random_tensors


@pytest.mark.parametrize("name", SHARING)
def test_logits_are_the_decoders(name: str) -> None:
    """Prefill, single tokens, a chunk; one thread and two, to the bit."""
    config = SHARING[name]
    tensors, ids = random_tensors(config, 1), prompt(config, 60)
    found = {}
    for threads in (1, 2):
        runner = NativeRunner(config, tensors, weights="fp32", num_blocks=4, num_threads=threads)
        found[threads] = logits_by_chunks(runner, ids, [44, 1, 1, 14])
    want = oracle_logits(config, tensors, ids)
    assert np.abs(found[1] - want).max() < 1e-3 * max(1.0, np.abs(want).max() / 10)
    assert np.array_equal(found[1], found[2])


@pytest.mark.parametrize("name", SHARING)
def test_8bit_logits_are_close(name: str) -> None:
    config = SHARING[name]
    tensors, ids = random_tensors(config, 1), prompt(config, 40)
    runner = NativeRunner(config, tensors, weights="w8", num_blocks=4, num_threads=1)
    assert mean_kl(oracle_logits(config, tensors, ids), logits_by_chunks(runner, ids, [40])) < 6e-3


@pytest.mark.parametrize("weights", ["fp32", "w8"])
def test_shared_matrices_are_in_memory_once(weights: Literal["fp32", "w8"]) -> None:
    """Two stored layers of four: half of what the layers of the plain model take."""
    config = SHARING["llama-adjacent"]
    tensors = random_tensors(config, 1)
    twin, twin_tensors = plain_twin(config, tensors)
    one = dataclasses.replace(config, layers=config.layers[:1])
    num_bytes = [
        NativeRunner(shape, arrays, weights=weights, num_blocks=1, num_threads=1).weight_bytes
        for shape, arrays in ((config, tensors), (twin, twin_tensors), (one, tensors))
    ]
    layer = (num_bytes[1] - num_bytes[2]) // 3
    assert num_bytes[0] == num_bytes[2] + layer and num_bytes[1] == num_bytes[2] + 3 * layer
