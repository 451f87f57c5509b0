"""Speed of an engine on this machine: prefill, decode, a batch of eight. Used by `smelt bench` and `bench/`.

Prompts are random ids and nothing stops early, so only the shape of the model and the machine count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Self

from smelt.core.sampling import SamplingParams
from smelt.engine.requests import EngineRequest, TokenDrawn

if TYPE_CHECKING:
    from smelt.engine.engine import Engine

PREFILL_LEN = 512
DECODE_LEN = 128
DECODE_PROMPT_LEN = 16
BATCH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """What a round asks for, in tokens: a prompt to read, an answer to write behind a short prompt, one or `batch`."""

    prefill: int = PREFILL_LEN
    decode: int = DECODE_LEN
    decode_prompt: int = DECODE_PROMPT_LEN
    batch: int = BATCH

    @classmethod
    def within(cls, context_len: int) -> Self:
        """The usual ones, or what fits into a shorter window."""
        whole = cls()
        prefill, decode = min(whole.prefill, context_len - 1), min(whole.decode, context_len // 2)
        return cls(prefill=prefill, decode=decode, decode_prompt=min(whole.decode_prompt, context_len - decode))


USUAL = Lengths()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One round. Rates in tokens per second, `ttft_s` the seconds from a prompt of `prefill` to its first token."""

    prefill_tok_s: float
    decode_tok_s: float
    batch_tok_s: float
    ttft_s: float


def median_sample(samples: list[Sample]) -> Sample:
    """Each figure's median over the rounds."""
    return Sample(
        prefill_tok_s=median(s.prefill_tok_s for s in samples),
        decode_tok_s=median(s.decode_tok_s for s in samples),
        batch_tok_s=median(s.batch_tok_s for s in samples),
        ttft_s=median(s.ttft_s for s in samples),
    )


def measure(
    engine: Engine, vocab_size: int, *, rounds: int = 5, seed: int = 0, lengths: Lengths = USUAL
) -> Iterator[Sample]:
    """Yield one Sample a round, after one round to warm up. Drives the engine itself: nobody else may step it."""
    random = Random(seed)
    for index in range(rounds + 1):
        ttft_s = _first_token_s(engine, _request(random, vocab_size, "prefill", lengths.prefill, 1))
        one = [_request(random, vocab_size, "one", lengths.decode_prompt, lengths.decode)]
        many = [
            _request(random, vocab_size, f"many-{i}", lengths.decode_prompt, lengths.decode)
            for i in range(lengths.batch)
        ]
        sample = Sample(
            prefill_tok_s=lengths.prefill / ttft_s,
            decode_tok_s=_decode_rate(engine, one),
            batch_tok_s=_decode_rate(engine, many),
            ttft_s=ttft_s,
        )
        if index:
            yield sample


def _request(random: Random, vocab_size: int, name: str, prompt_len: int, max_new_tokens: int) -> EngineRequest:
    # A fresh random prompt every time: the prefix cache must not help.
    return EngineRequest(
        id=name,
        prompt_ids=[random.randrange(vocab_size) for _ in range(prompt_len)],
        privileges=bytes(prompt_len),
        params=SamplingParams(temperature=0.0),
        seed=0,
        max_new_tokens=max_new_tokens,
    )


def _first_token_s(engine: Engine, request: EngineRequest) -> float:
    start = time.perf_counter()
    engine.add(request)
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


def _decode_rate(engine: Engine, requests: list[EngineRequest]) -> float:
    """Tokens per second after every request has its first token."""
    for request in requests:
        engine.add(request)
    started: set[str] = set()
    while len(started) < len(requests):
        started |= {event.request_id for event in engine.step() if isinstance(event, TokenDrawn)}
    num_tokens, start = 0, time.perf_counter()
    while engine.has_work:
        num_tokens += sum(isinstance(event, TokenDrawn) for event in engine.step())
    return num_tokens / (time.perf_counter() - start)
