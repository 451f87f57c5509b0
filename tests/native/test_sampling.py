"""The native sampler against its numpy twin, over the same logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.core.decoder import DecoderConfig
from smelt.core.errors import EngineError
from smelt.engine.sampling import sample_step
from smelt.native import NativeRunner
from tests.native.batches import Chunk, make_batch, make_runner, prompt
from tests.native.test_kernels import ISAS
from tests.tiny import random_tensors, tiny_config

VOCAB = 200
CONFIG = tiny_config("llama", num_layers=1, vocab_size=VOCAB)
RUNNERS: dict[tuple[str, float], NativeRunner] = {}


def _runner(isa: str, spread: float) -> NativeRunner:
    if (isa, spread) not in RUNNERS:
        RUNNERS[isa, spread] = make_runner(CONFIG, isa=isa, spread=spread, num_threads=2)
    return RUNNERS[isa, spread]


def _agree(runner: NativeRunner, chunks: list[Chunk]) -> None:
    batch = make_batch(chunks, VOCAB)
    logits = runner.logits(batch)
    scored = np.repeat(batch.score != 0, np.diff(batch.starts))
    want = sample_step(logits[batch.starts[1:] - 1], logits[scored], batch)
    found = runner.step(batch)
    for field in ("token_ids", "top_ids", "scored_top_ids"):
        a, b = getattr(found, field), getattr(want, field)
        assert a.dtype == b.dtype and np.array_equal(a, b), field
    for field in ("logprobs", "top_logprobs", "scored_logprobs", "scored_top_logprobs"):
        a, b = getattr(found, field), getattr(want, field)
        assert a.shape == b.shape and a.dtype == b.dtype, field
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=field)


tokens = st.integers(0, VOCAB - 1)
chunks = st.builds(
    dict,
    length=st.integers(1, 10),
    prompt_seed=st.integers(0, 10**6),
    sample=st.sampled_from([True, True, True, False]),
    score=st.booleans(),
    next_id=st.integers(-1, VOCAB - 1),
    temperature=st.sampled_from([0.0, 1e-4, 0.3, 0.7, 1.0, 1.3, 2.0, 50.0]),
    top_p=st.sampled_from([0.0, 0.05, 0.5, 0.9, 0.99, 1.0]),
    presence=st.sampled_from([0.0, 1.5, -2.0]),
    frequency=st.sampled_from([0.0, 0.7, -1.0]),
    seed=st.integers(0, 2**64 - 1),
    draw=st.integers(0, 2**64 - 1),
    top_k=st.sampled_from([-1, 0, 1, 5, 20, VOCAB, VOCAB + 5]),
    bias=st.dictionaries(tokens, st.sampled_from([-100.0, -1.5, 3.0, 100.0]), max_size=4),
    counts=st.dictionaries(tokens, st.integers(0, 9), max_size=6),
    allowed=st.one_of(
        st.none(), st.sets(tokens, min_size=1, max_size=3), st.just(set(range(VOCAB))), st.just(set(range(64, 130)))
    ),
)


@pytest.mark.parametrize("isa", sorted({ISAS[0], ISAS[-1]}))
@settings(max_examples=120, deadline=None)
@given(parts=st.lists(chunks, min_size=1, max_size=5), spread=st.sampled_from([0.02, 1.0, 4.0]))
def test_draws_and_reports_are_the_twins(isa: str, parts: list[dict[str, Any]], spread: float) -> None:
    """A draw can differ only where u falls within rounding of a boundary, which these never do twice in a lifetime."""
    batch = []
    for i, part in enumerate(parts):
        allowed = part.pop("allowed")
        mask = None if allowed is None else np.isin(np.arange(VOCAB), sorted(allowed))
        ids = prompt(CONFIG, part.pop("length"), part.pop("prompt_seed"))
        batch.append(Chunk(ids=ids, table=[i], mask=mask, **part))
    _agree(_runner(isa, spread), batch)


def _flat_runner(isa: str) -> NativeRunner:
    """Every logit is exactly 0."""
    tensors = random_tensors(CONFIG)
    tensors["lm_head.weight"][:] = 0
    return NativeRunner(CONFIG, tensors, weights="fp32", num_blocks=8, num_threads=1, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
def test_ties_go_to_the_lowest_id(isa: str) -> None:
    runner = _flat_runner(isa)
    mask = np.arange(VOCAB) >= 37
    _agree(runner, [Chunk(ids=[1], sample=True, top_k=4), Chunk(ids=[1], table=[1], sample=True, mask=mask, top_k=4)])
    found = runner.step(make_batch([Chunk(ids=[1], sample=True, mask=mask)], VOCAB))
    assert found.token_ids[0] == 37
    for draw in range(50):  # equal tokens are laid out by rising id
        part = Chunk(ids=[1], sample=True, temperature=1.0, top_p=0.5, seed=3, draw=draw, top_k=2)
        _agree(runner, [part])


def test_draws_follow_the_distribution() -> None:
    """4000 draws from one distribution: the counts fit it (chi-square at five sigma)."""
    runner = _runner(ISAS[-1], 1.0)
    ids = prompt(CONFIG, 5)
    num_draws = 4000
    logits = runner.logits(make_batch([Chunk(ids=ids)], VOCAB))[-1].astype(np.float64)
    wanted = np.exp(logits - logits.max())
    wanted /= wanted.sum()
    runner.step(make_batch([Chunk(ids=ids[:-1])], VOCAB))
    counts = np.zeros(VOCAB)
    for start in range(0, num_draws, 200):
        last = [
            Chunk(ids=ids[-1:], first=4, table=[0], sample=True, temperature=1.0, draw=start + i) for i in range(200)
        ]
        np.add.at(counts, runner.step(make_batch(last, VOCAB)).token_ids, 1)
    chi_square = ((counts - num_draws * wanted) ** 2 / (num_draws * wanted)).sum()
    assert abs(chi_square - (VOCAB - 1)) < 5 * (2 * (VOCAB - 1)) ** 0.5


def _broken_config() -> tuple[DecoderConfig, dict[str, Any]]:
    tensors = random_tensors(CONFIG)
    for name in ("model.norm.weight", "lm_head.weight"):
        tensors[name] = tensors[name] * np.float32(1e30)  # finite weights, infinite logits
    return CONFIG, tensors


@pytest.mark.parametrize("weights", ["fp32", "w8"])
@pytest.mark.parametrize("isa", ISAS)
def test_logits_that_are_not_finite_are_an_error(isa: str, weights: Any) -> None:
    config, tensors = _broken_config()
    runner = NativeRunner(config, tensors, weights=weights, num_blocks=2, num_threads=1, isa=isa)
    for part in (Chunk(ids=[1, 2], sample=True), Chunk(ids=[1, 2], score=True, top_k=2)):
        with pytest.raises(EngineError, match="not finite"):
            runner.step(make_batch([part], VOCAB))
    assert runner.step(make_batch([Chunk(ids=[1, 2])], VOCAB)).token_ids[0] == -1  # nothing asked, nothing wrong


def test_a_mask_that_allows_nothing_is_an_error_and_the_runner_goes_on() -> None:
    runner = _runner(ISAS[-1], 1.0)
    nothing = Chunk(ids=[1], sample=True, mask=np.zeros(VOCAB, np.bool_))
    with pytest.raises(EngineError, match="allows no token"):
        runner.step(make_batch([nothing], VOCAB))
    _agree(runner, [Chunk(ids=[1], sample=True)])
