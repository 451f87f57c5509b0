"""The numpy sampler against the definition in core.step, written out with Python's own floats and sorts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.core.errors import EngineError
from smelt.core.sampling import counter_uniform
from smelt.engine.sampling import sample_batch, sample_step, score_rows
from tests.engine.fakes import make_batch, mask_of


def logits_of(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def draw_by_definition(logits: list[float], temperature: float, top_p: float, u: float) -> int:
    """Temperature, top-p and the pick, in scalar Python."""
    if temperature == 0:
        return max(range(len(logits)), key=lambda t: (logits[t], -t))
    best = max(logits)
    weights = [math.exp((x - best) / temperature) for x in logits]
    total = math.fsum(weights)
    order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
    kept: list[int] = []
    for t in order:
        kept.append(t)
        if math.fsum(weights[k] for k in kept) / total >= top_p:
            break
    kept_total = math.fsum(weights[t] for t in kept)
    for i, t in enumerate(kept):
        if math.fsum(weights[k] for k in kept[: i + 1]) > u * kept_total:
            return t
    return kept[-1]


quarter = st.integers(-12, 12).map(lambda i: i / 4)  # few distinct values: ties are common


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(quarter, min_size=2, max_size=40),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    draw=st.integers(0, 100),
    data=st.data(),
)
def test_a_draw_follows_the_definition(logits, temperature, top_p, seed, draw, data):
    vocab_size = len(logits)
    tokens = st.integers(0, vocab_size - 1)
    bias = data.draw(st.dictionaries(tokens, quarter, max_size=4), label="bias")
    counts = data.draw(st.dictionaries(tokens, st.integers(1, 3), max_size=4), label="counts")
    presence, frequency = data.draw(quarter, label="presence"), data.draw(quarter, label="frequency")
    allowed = data.draw(st.none() | st.sets(tokens, min_size=1), label="allowed")
    batch = make_batch(
        temperatures=np.array([temperature], np.float32),
        top_ps=np.array([top_p], np.float32),
        presence_penalties=np.array([presence], np.float32),
        frequency_penalties=np.array([frequency], np.float32),
        seeds=np.array([seed], np.uint64),
        draws=np.array([draw], np.uint64),
        bias_starts=np.array([0, len(bias)], np.int32),
        bias_ids=np.array(list(bias), np.int32),
        bias_values=np.array(list(bias.values()), np.float32),
        count_starts=np.array([0, len(counts)], np.int32),
        count_ids=np.array(list(counts), np.int32),
        counts=np.array(list(counts.values()), np.int32),
        mask_rows=np.array([-1 if allowed is None else 0], np.int32),
        masks=mask_of(vocab_size, allowed or set()),
    )
    adjusted = [
        (x + bias.get(t, 0.0) - (presence + frequency * counts[t] if t in counts else 0.0))
        if allowed is None or t in allowed
        else -math.inf
        for t, x in enumerate(logits)
    ]
    token_ids, *_ = sample_batch(logits_of(*logits), batch)
    expected = draw_by_definition(adjusted, temperature, top_p, counter_uniform(seed, draw))
    assert token_ids.tolist() == [expected]


def test_draws_have_the_distribution_of_the_softmax():
    """10,000 draws of three tokens: each share within five standard errors of its probability."""
    n = 10_000
    logits = np.tile(np.log(np.array([0.5, 0.3, 0.2], np.float32)), (n, 1))
    batch = make_batch(n, temperatures=np.ones(n, np.float32), draws=np.arange(n, dtype=np.uint64))
    token_ids, *_ = sample_batch(logits, batch)
    shares = np.bincount(token_ids, minlength=3) / n
    assert np.allclose(shares, [0.5, 0.3, 0.2], atol=5 * 0.5 / math.sqrt(n))


def test_logprobs_are_of_the_models_own_distribution_whatever_bends_the_draw():
    own = np.array([2.0, 1.0, 0.0], np.float32)
    batch = make_batch(
        top_k=np.array([3], np.int32),
        temperatures=np.array([0.0], np.float32),
        bias_starts=np.array([0, 1], np.int32),
        bias_ids=np.array([2], np.int32),
        bias_values=np.array([100.0], np.float32),
    )
    token_ids, logprobs, top_ids, top_logprobs = sample_batch(own[None], batch)
    expected = own - math.log(sum(math.exp(x) for x in own))
    assert token_ids.tolist() == [2]
    assert logprobs[0] == pytest.approx(expected[2], abs=1e-6)
    assert top_ids.tolist() == [[0, 1, 2]]
    assert top_logprobs[0] == pytest.approx(expected, abs=1e-6)


def test_alternatives_are_padded_and_ties_go_by_rising_id():
    logits = np.array([[1.0, 3.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0], [0.0, 1.0, 0.0, 0.0]], np.float32)
    batch = make_batch(3, top_k=np.array([3, 0, -1], np.int32))
    _, logprobs, top_ids, top_logprobs = sample_batch(logits, batch)
    assert top_ids.tolist() == [[1, 0, 2], [-1, -1, -1], [-1, -1, -1]]
    assert np.isnan(top_logprobs[1:]).all() and not np.isnan(top_logprobs[0]).any()
    assert np.isnan(logprobs).tolist() == [False, False, True]


def test_score_rows_reports_successors_and_alternatives():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], np.float32))
    logprobs, top_ids, top_logprobs = score_rows(logits, np.array([1, -1], np.int32), 2)
    assert logprobs[0] == pytest.approx(math.log(0.2), abs=1e-6) and np.isnan(logprobs[1])
    assert top_ids.tolist() == [[0, 1], [2, 0]]
    assert np.exp(top_logprobs) == pytest.approx(np.array([[0.7, 0.2], [0.8, 0.1]]), abs=1e-6)


def test_a_step_scores_only_the_sequences_that_ask():
    """Two tokens scored for sequence 1 of three; the width is that of the whole batch."""
    batch = make_batch(
        3,
        starts=np.array([0, 1, 3, 4], np.int32),
        next_ids=np.array([-1, 2, -1, -1], np.int32),
        score=np.array([0, 1, 0], np.uint8),
        sample=np.array([1, 0, 1], np.uint8),
        top_k=np.array([-1, 1, 2], np.int32),
    )
    logits = np.array([[0, 1, 2], [9, 9, 9], [2, 1, 0]], np.float32)
    scored = np.array([[0, 0, 1], [0, 3, 0]], np.float32)
    result = sample_step(logits, scored, batch)
    assert result.token_ids.tolist() == [2, -1, 0]
    assert result.top_ids.shape == (3, 2) and result.scored_top_ids.tolist() == [[2, -1], [1, -1]]
    assert result.scored_logprobs[0] == pytest.approx(1 - math.log(2 + math.e), abs=1e-6)
    assert np.isnan(result.scored_logprobs[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(EngineError, match="not finite"):
        sample_batch(logits_of(0.0, bad, 1.0), make_batch())
    with pytest.raises(EngineError, match="not finite"):
        score_rows(logits_of(0.0, bad, 1.0), np.array([0], np.int32), 0)


def test_a_mask_that_allows_nothing_is_an_error():
    batch = make_batch(mask_rows=np.array([0], np.int32), masks=mask_of(3, set()))
    with pytest.raises(EngineError, match="allows no token"):
        sample_batch(logits_of(0.0, 1.0, 2.0), batch)


def test_a_tiny_temperature_is_greedy_and_raises_no_warning():
    batch = make_batch(temperatures=np.array([1e-30], np.float32))
    assert sample_batch(logits_of(-1e5, 3.0, 1e5), batch)[0].tolist() == [2]
