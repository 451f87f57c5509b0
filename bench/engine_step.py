"""What the engine itself costs per decode step: everything but the model, in microseconds.

    python bench/engine_step.py [--rounds 7] [--steps 2000]

The runner does nothing and reports token 1 for everyone, so what is timed is scheduling, the StepBatch and the events.
Each figure is the median over rounds. Prints a card and one final JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import numpy as np

from smelt.core.sampling import SamplingParams
from smelt.core.step import StepBatch, StepResult
from smelt.engine.engine import Engine
from smelt.engine.requests import EngineRequest

VOCAB = 32_000
PROMPT_LEN = 64
PREFILL_LEN = 2048


class IdleRunner:
    """Computes nothing."""

    vocab_size = VOCAB
    block_size = 16
    num_blocks = 8192

    def step(self, batch: StepBatch) -> StepResult:
        num = batch.num_sequences
        nothing = np.zeros((num, 0), np.int32)
        return StepResult(
            token_ids=np.ones(num, np.int32),
            logprobs=np.zeros(num, np.float32),
            top_ids=nothing,
            top_logprobs=nothing.astype(np.float32),
            scored_logprobs=np.zeros(0, np.float32),
            scored_top_ids=nothing[:0],
            scored_top_logprobs=nothing[:0].astype(np.float32),
        )


class OpenGrammar:
    """Allows everything: the price of the grammar port without a grammar."""

    def fill_mask(self, row: np.ndarray) -> None:
        row[:] = 0xFFFFFFFF

    def advance(self, token_id: int) -> None:
        pass

    def forced_tokens(self) -> list[int]:
        return []


def requests(count: int, new_tokens: int, **options: object) -> list[EngineRequest]:
    grammar = OpenGrammar() if options.pop("grammar", False) else None
    params = SamplingParams(**options)  # type: ignore[arg-type]
    return [
        EngineRequest(
            id=f"r{i}",
            prompt_ids=[i + 1] * PROMPT_LEN,
            privileges=bytes(PROMPT_LEN),
            params=params,
            seed=i,
            max_new_tokens=new_tokens,
            matcher=grammar,
        )
        for i in range(count)
    ]


def step_us(count: int, steps: int, **options: object) -> float:
    """Microseconds per step with `count` sequences decoding."""
    engine = Engine(IdleRunner(), context_len=PROMPT_LEN + steps + 100, max_batch_tokens=count * PROMPT_LEN)
    for one in requests(count, steps + 100, **options):
        engine.add(one)
    for _ in range(50):
        engine.step()
    start = time.perf_counter()
    for _ in range(steps):
        engine.step()
    return (time.perf_counter() - start) / steps * 1e6


def prefill_us(cached: bool) -> float:
    """Microseconds of the step that computes a whole prompt of PREFILL_LEN tokens, from `add` to its first token."""
    engine = Engine(IdleRunner(), context_len=2 * PREFILL_LEN, max_batch_tokens=PREFILL_LEN)
    prompt = np.random.default_rng(0).integers(0, VOCAB, PREFILL_LEN).tolist()
    times = []
    for i in range(2):
        one = EngineRequest(
            id=f"r{i}",
            prompt_ids=prompt,
            privileges=bytes(PREFILL_LEN),
            params=SamplingParams(temperature=0.0),
            seed=0,
            max_new_tokens=1,
        )
        start = time.perf_counter()
        engine.add(one)
        engine.step()
        times.append(time.perf_counter() - start)
    return times[int(cached)] * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    cases = {
        "decode_batch1_us": lambda: step_us(1, args.steps),
        "decode_batch8_us": lambda: step_us(8, args.steps),
        "decode_batch1_penalties_us": lambda: step_us(1, args.steps, presence_penalty=1.0),
        "decode_batch1_logprobs_us": lambda: step_us(1, args.steps, top_logprobs=0),
        "decode_batch1_grammar_us": lambda: step_us(1, args.steps, grammar=True),
        f"prefill_{PREFILL_LEN}_us": lambda: prefill_us(cached=False),
        f"prefill_{PREFILL_LEN}_cached_us": lambda: prefill_us(cached=True),
    }
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, case in cases.items():
            figures[name].append(case())
    results = {name: round(median(values), 1) for name, values in figures.items()}
    for name, value in results.items():
        print(f"{name:32}{value:10.1f}")
    print(json.dumps({"bench": "engine_step", **results}))


if __name__ == "__main__":
    main()
