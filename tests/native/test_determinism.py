"""A token's result depends on its own sequence alone: bitwise, on every path."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smelt.core.decoder import DecoderConfig
from smelt.native import NativeRunner
from tests.native.batches import Chunk, logits_by_chunks, make_batch, make_runner, prompt
from tests.native.test_kernels import ISAS
from tests.tiny import tiny_config

CONFIGS: dict[str, DecoderConfig] = {
    "llama": tiny_config("llama", num_heads=6, num_kv_heads=2),
    "gemma3": tiny_config("gemma3_text", num_kv_heads=1),
}
LENGTH = 41
TABLE = [4, 11, 2]

_runners: dict[tuple[str, str, str, int], NativeRunner] = {}


def _runner(name: str, weights: str, isa: str, num_threads: int) -> NativeRunner:
    key = (name, weights, isa, num_threads)
    if key not in _runners:
        _runners[key] = make_runner(CONFIGS[name], weights=weights, isa=isa, num_threads=num_threads)
    return _runners[key]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weights", ["fp32", "w8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_and_threads_change_no_bit(name: str, weights: Literal["fp32", "w8"], isa: str) -> None:
    ids = prompt(CONFIGS[name], LENGTH)
    whole = logits_by_chunks(_runner(name, weights, isa, 1), ids, [LENGTH])
    for num_threads in (1, 2, 3):
        runner = _runner(name, weights, isa, num_threads)
        for sizes in ([LENGTH], [1], [2], [3], [5], [7], [17, 1, 1, 8, 2]):
            assert np.array_equal(logits_by_chunks(runner, ids, sizes, TABLE), whole), (num_threads, sizes)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_batch_mates_change_no_bit(data: st.DataObject) -> None:
    """A sequence cut anywhere, beside mates of any length, each with its own blocks, in any order."""
    name = data.draw(st.sampled_from(sorted(CONFIGS)))
    weights = data.draw(st.sampled_from(["fp32", "w8"]))
    runner = _runner(name, weights, ISAS[-1], data.draw(st.integers(1, 2)))
    config = CONFIGS[name]
    ids = prompt(config, LENGTH, data.draw(st.integers(0, 5)))
    alone = logits_by_chunks(runner, ids, [LENGTH], TABLE)
    free = [block for block in range(runner.num_blocks) if block not in TABLE]
    first = 0
    while first < LENGTH:
        size = data.draw(st.integers(1, LENGTH - first))
        chunks = [Chunk(ids=ids[first : first + size], first=first, table=TABLE)]
        for i in range(data.draw(st.integers(0, 3))):
            mate = prompt(config, data.draw(st.integers(1, 30)), 100 + i)
            chunks.append(Chunk(ids=mate, table=free[2 * i : 2 * i + 2]))
        place = data.draw(st.integers(0, len(chunks) - 1))
        chunks[0], chunks[place] = chunks[place], chunks[0]
        batch = make_batch(chunks, config.vocab_size)
        found = runner.logits(batch)[batch.starts[place] : batch.starts[place + 1]]
        assert np.array_equal(found, alone[first : first + size])
        first += size


def test_what_a_block_held_before_does_not_matter() -> None:
    """A freed block keeps old keys and values: rows not yet written by the new owner must not be read."""
    runner = _runner("llama", "fp32", ISAS[-1], 1)
    config = CONFIGS["llama"]
    ids = prompt(config, 20)
    clean = logits_by_chunks(make_runner(config, isa=ISAS[-1]), ids, [20], TABLE)
    runner.logits(make_batch([Chunk(ids=prompt(config, 48, 9), table=TABLE)], config.vocab_size))
    assert np.array_equal(logits_by_chunks(runner, ids, [20], TABLE), clean)


def test_a_reported_draw_is_the_same_in_any_batch() -> None:
    """The same seed gives the same token and the same log-probabilities, alone and in company."""
    runner = _runner("gemma3", "w8", ISAS[-1], 2)
    config = CONFIGS["gemma3"]
    wanted = Chunk(ids=prompt(config, 18), table=[1, 2], sample=True, temperature=1.0, top_p=0.95, seed=11, top_k=5)
    mates = [Chunk(ids=prompt(config, n, n), table=[10 + n], sample=True, temperature=0.5) for n in range(1, 9)]
    alone = runner.step(make_batch([wanted], config.vocab_size))
    crowd = runner.step(make_batch([*mates, wanted], config.vocab_size))

    def last(array: NDArray[np.generic]) -> NDArray[np.generic]:
        return array[-1]

    assert alone.token_ids[-1] == crowd.token_ids[-1]
    assert np.array_equal(last(alone.logprobs), last(crowd.logprobs))
    assert np.array_equal(last(alone.top_logprobs), last(crowd.top_logprobs))
