"""The engine over real models: an answer does not change with its chunks, its company, the cache or preemption.

Native steps promise the same bits whatever the batch, so tokens and log-probabilities are compared exactly. Torch
promises that for batch mates only; chunk lengths move its logits by rounding, so tokens are compared there.
"""

from __future__ import annotations

import pytest

from smelt.core.step import Runner
from smelt.engine.engine import Engine
from smelt.engine.requests import EngineRequest
from tests.engine.fakes import Answer, request, run
from tests.tiny import random_tensors, tiny_config

FAMILIES = ["llama", "gemma3_text"]  # full attention, and windows shorter than the prompts here
BLOCK_SIZE = 16  # the native core's smallest
CONTEXT = 120


def make_runner(kind: str, family: str, *, num_blocks: int) -> Runner:
    config = tiny_config(family)
    tensors = random_tensors(config, seed=1)
    if kind == "torch":
        from smelt.engine.torch_runner import TorchRunner

        return TorchRunner(config, tensors, num_blocks=num_blocks, block_size=BLOCK_SIZE)
    from smelt.native import NativeRunner

    weights = "fp32" if kind == "native-fp32" else "w8"
    return NativeRunner(config, tensors, weights=weights, num_blocks=num_blocks, block_size=BLOCK_SIZE, num_threads=2)


def conversations() -> list[EngineRequest]:
    """Shared beginnings, greedy and drawn, one with its prompt scored; short and past the sliding window."""
    shared = [(7 * i) % 90 + 2 for i in range(50)]
    return [
        request(
            [*shared[: 4 + 14 * i], 40 + i],
            id=f"c{i}",
            max_new_tokens=20,
            temperature=(0.0, 1.0)[i % 2],
            top_p=0.95,
            seed=i,
            frequency_penalty=0.3 * i,
            top_logprobs=2,
            score_prompt=i == 2,
        )
        for i in range(4)
    ]


def comparable(answers: dict[str, Answer], *, exact: bool) -> list[object]:
    assert not [answer.error for answer in answers.values() if answer.error]
    return [
        (name, a.tokens, a.reason, *((a.logprobs, a.prompt) if exact else ())) for name, a in sorted(answers.items())
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["torch", "native-fp32", "native-w8"])
def test_answers_do_not_depend_on_how_they_were_computed(kind, family):
    exact = kind != "torch"

    def answers(num_blocks: int = 64, **options: int) -> tuple[list[object], Engine]:
        engine = Engine(make_runner(kind, family, num_blocks=num_blocks), context_len=CONTEXT, **options)
        return comparable(run(engine, *conversations()), exact=exact), engine

    plain = []
    for one in conversations():  # alone, uncached, the prompt in one chunk
        engine = Engine(make_runner(kind, family, num_blocks=64), context_len=CONTEXT)
        plain += comparable(run(engine, one), exact=exact)

    together, engine = answers()
    assert together == plain
    again = comparable(run(engine, *conversations()), exact=exact)  # now from the prefix cache
    assert engine.stats().cached_tokens > 0
    assert again == plain
    chunked, _ = answers(max_running=3, max_batch_tokens=5)
    assert chunked == plain
    tight, engine = answers(num_blocks=8)
    assert engine.stats().num_preemptions > 0
    assert tight == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_native_and_torch_give_the_same_answers(family):
    """Two implementations, one engine: greedy and drawn tokens agree, log-probabilities to rounding."""
    torch_engine, native_engine = (
        Engine(make_runner(kind, family, num_blocks=64), context_len=CONTEXT) for kind in ("torch", "native-fp32")
    )
    expected, found = run(torch_engine, *conversations()), run(native_engine, *conversations())
    assert comparable(found, exact=False) == comparable(expected, exact=False)
    for name, answer in found.items():
        mine = [p.logprob for p in answer.logprobs if p]
        assert mine == pytest.approx([p.logprob for p in expected[name].logprobs if p], abs=1e-3)
