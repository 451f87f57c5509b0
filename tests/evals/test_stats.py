"""Intervals by published values, by simulation, and against closed forms."""

from __future__ import annotations

import math
import random

import pytest

from smelt.evals.stats import clustered, mcnemar, paired_ratio, proportion, ratio, wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)]
)
def test_wilson_by_published_values(successes: int, total: int, low: float, high: float) -> None:
    found = wilson(successes, total)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_nothing_counted_says_nothing() -> None:
    assert proportion(0, 0) == {"value": 0.0, "n": 0, "interval95": [0.0, 1.0]}
    assert clustered([], []) == proportion(0, 0)
    assert ratio([], [], [])["n"] == 0


def test_answers_that_stand_alone_are_plain_wilson() -> None:
    assert clustered([True, False, True], ["a", "b", "c"]) == proportion(2, 3)


def test_answers_that_move_together_count_once() -> None:
    """Ten texts with five questions each, all right or all wrong by text: as much evidence as ten answers."""
    marks = [text % 2 == 0 for text in range(10) for _ in range(5)]
    groups = [str(text) for text in range(10) for _ in range(5)]
    found = clustered(marks, groups)
    ten = wilson(5, 10)
    assert (found["value"], found["n"], found["num_groups"]) == (0.5, 50, 10)
    assert found["interval95"] == pytest.approx(ten, abs=0.03)
    same = clustered([True] * 50, groups)
    assert same["interval95"] == pytest.approx(wilson(10, 10), abs=1e-4)


def _coverage(interval_of: object, truth: float, draw: object, rounds: int = 60) -> float:
    hits = 0
    for seed in range(rounds):
        low, high = interval_of(*draw(random.Random(seed)))["interval95"]  # type: ignore[operator]
        hits += low <= truth <= high
    return hits / rounds


def test_ratio_interval_covers_the_truth() -> None:
    """Bits of passages of random length at 2 bits a byte on average."""

    def draw(rng: random.Random) -> tuple[list[float], list[float], list[str]]:
        sizes = [float(rng.randint(50, 500)) for _ in range(60)]
        return [size * rng.gauss(2.0, 0.4) for size in sizes], sizes, [str(i) for i in range(60)]

    assert 0.85 <= _coverage(ratio, 2.0, draw) <= 1.0


def test_clustered_interval_covers_the_truth() -> None:
    def draw(rng: random.Random) -> tuple[list[bool], list[str]]:
        easy = [rng.choice([0.2, 0.8]) for _ in range(30)]
        return [rng.random() < p for p in easy for _ in range(6)], [str(i) for i in range(30) for _ in range(6)]

    assert 0.85 <= _coverage(clustered, 0.5, draw) <= 1.0


def test_a_pair_cancels_what_is_hard_for_both() -> None:
    rng = random.Random(0)
    hard = [rng.uniform(1, 6) for _ in range(80)]
    ours = ([value - 0.1 + rng.gauss(0, 0.02) for value in hard], [1.0] * 80)
    theirs = (hard, [1.0] * 80)
    groups = [str(i) for i in range(80)]
    low, high = paired_ratio(ours, theirs, groups)["interval95"]
    assert low < -0.1 < high < 0
    alone = ratio(*ours, groups)["interval95"]
    assert alone[1] - alone[0] > 10 * (high - low)


def test_mcnemar_is_the_exact_sign_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 / 64)
    assert mcnemar(2, 10) == mcnemar(10, 2) == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 4096)
