"""Speed when another process holds a core: what a laptop looks like all day."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from smelt.native import NativeRunner
from tests.native.batches import Chunk, make_batch, make_runner
from tests.tiny import tiny_config

CONFIG = tiny_config("llama", hidden_size=256, intermediate_size=768, num_layers=8, context_len=2048)


def _decode_rate(runner: NativeRunner, seconds: float) -> float:
    batch = make_batch([Chunk(ids=[1], first=63, sample=True)], CONFIG.vocab_size)
    num_steps, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        runner.step(batch)
        num_steps += 1
    return num_steps / (time.monotonic() - start)


@pytest.mark.slow
def test_barriers_do_not_collapse_beside_busy_processes() -> None:
    """As many threads as processors, as many busy processes beside them: spinning barriers ran 30 times slower so.

    Threads that keep stalling are given up for a while, so the pool must keep a third of one thread's speed.
    """
    num_processors = len(os.sched_getaffinity(0))
    if num_processors < 2:
        pytest.skip("needs two processors")
    one = make_runner(CONFIG, weights="w8", num_threads=1)
    many = make_runner(CONFIG, weights="w8", num_threads=num_processors)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_processors)]
    try:
        rates = [(_decode_rate(one, 1.5), _decode_rate(many, 1.5)) for _ in range(3)]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert max(rate_many / rate_one for rate_one, rate_many in rates) > 1 / 3, rates
