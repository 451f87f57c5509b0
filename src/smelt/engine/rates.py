"""What this machine does, measured in about a second, for predictions of a shape's speed (core.cost).

Medians of single steps and the best of several reads: work of others on the same cores slows a second of wall time, and
few steps of a hundred microseconds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random
from statistics import median
from typing import TYPE_CHECKING

from smelt.core.cost import NATIVE_W8, Rates, attention_macs, weight_bytes
from smelt.core.decoder import DecoderConfig, LayerConfig
from smelt.core.sampling import SamplingParams
from smelt.engine.engine import Engine
from smelt.engine.requests import EngineRequest, TokenDrawn
from smelt.native import NativeRunner
from smelt.native.machine import choose_threads, multiply_rate, read_bandwidth

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LEAST_READ, _MOST_READ = 1 << 20, 256 << 20
_NEAR, _FAR = 16, 2016  # tokens before the measured steps
_STEPS = 32
_WIDTH = 64  # of the probe's hidden states, MLP and vocabulary: next to nothing


def measure_rates(config: DecoderConfig, *, threads: int | None = None) -> Rates:
    """The rates that matter to a decoder of this shape. threads None: what the machine grants.

    Reads as many bytes as the weights have, so that a small model is predicted from the cache it will lie in. Keys and
    values are gone through by a probe: one layer with this shape's head width and heads a group, nothing else.
    Raises EngineError where the native core is not built.
    """
    num = threads or choose_threads().threads
    size = min(_MOST_READ, max(_LEAST_READ, weight_bytes(config, NATIVE_W8)))
    near_s, far_s, macs = _probe(config)
    sharing = min(num, config.num_kv_heads)  # threads share attention out by key/value heads
    return Rates(
        read_gb_s=max(read_bandwidth(n, size) for n in {1, num}),
        multiply_gops=multiply_rate(num),
        attention_gflops=sharing * 2 * macs / max(far_s - near_s, 1e-9) / 1e9,
        step_s=near_s,
    )


def _probe(config: DecoderConfig) -> tuple[float, float, int]:
    """Seconds of a step with few and with many tokens before it, and the multiply-adds between the two."""
    probe = replace(
        config,
        vocab_size=_WIDTH,
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_heads=config.num_heads // config.num_kv_heads,
        num_kv_heads=1,
        layers=(LayerConfig(),),
        context_len=4096,
        num_privileges=0,
        bos_id=None,
        eos_ids=(),
        pad_id=None,
    )
    runner = NativeRunner(probe, _noise(probe), num_blocks=2 * (_FAR + _STEPS) // 16 + 4, num_threads=1)
    engine = Engine(runner, context_len=_FAR + 2 * _STEPS)
    near_s, far_s = (step_seconds(engine, length, _WIDTH, Random(length)) for length in (_NEAR, _FAR))
    return near_s, far_s, attention_macs(probe, _FAR) - attention_macs(probe, _NEAR)


def _noise(config: DecoderConfig) -> dict[str, NDArray[np.float32]]:
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
        for name, shape in config.tensor_shapes().items()
    }


def step_seconds(engine: Engine, prompt_len: int, vocab_size: int, random: Random) -> float:
    """Median seconds of a decoding step behind a random prompt."""
    engine.add(
        EngineRequest(
            id="probe",
            prompt_ids=[random.randrange(vocab_size) for _ in range(prompt_len)],
            privileges=bytes(prompt_len),
            params=SamplingParams(temperature=0.0),
            seed=0,
            max_new_tokens=_STEPS,
        )
    )
    taken: list[float] = []
    while engine.has_work:
        start = time.perf_counter()
        events = engine.step()
        if any(isinstance(event, TokenDrawn) for event in events):
            taken.append(time.perf_counter() - start)
    return median(taken[1:])  # the first one ended the prompt


def matmul_gflops(seconds: float = 0.2) -> float:
    """GFLOP/s of float32 matrix products with every thread the numerical library takes, the best of those in time."""
    import numpy as np

    size = 512
    matrix = np.ones((size, size), dtype=np.float32)
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        _ = matrix @ matrix
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best
