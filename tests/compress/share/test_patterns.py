"""Patterns over integers: who shares with whom, and the exact search for the best cuts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.compress.share.patterns import Adjacent, Given, Groups, Loop, Pattern, Similar, most_alike, sharing_layers
from smelt.core.decoder import LayerConfig
from smelt.core.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("pattern", "num_layers", "groups"),
    [
        (Adjacent(), 4, ((0, 1), (2, 3))),
        (Adjacent(times=3, first=1), 7, ((1, 2, 3), (4, 5, 6))),
        (Loop(), 6, ((1, 3), (2, 4))),
        (Loop(times=3, first=2, last=1), 9, ((2, 4, 6), (3, 5, 7))),
        (Given(together=((5, 2), (1, 0))), 6, ((0, 1), (2, 5))),
    ],
)
def test_groups(pattern: Adjacent | Loop | Given, num_layers: int, groups: Groups) -> None:
    assert pattern.groups(num_layers) == groups


@pytest.mark.parametrize(
    ("pattern", "num_layers", "order"),
    [
        (Adjacent(), 3, (0, 0, 1, 1, 2, 2)),
        (Adjacent(first=1, last=1), 4, (0, 1, 1, 2, 2, 3)),
        (Loop(times=3), 4, (0, 1, 2, 1, 2, 1, 2, 3)),
        (Loop(times=1), 4, (0, 1, 2, 3)),
    ],
)
def test_orders(pattern: Adjacent | Loop, num_layers: int, order: tuple[int, ...]) -> None:
    assert pattern.order(num_layers) == order


@given(times=st.integers(1, 4), blocks=st.integers(1, 4), first=st.integers(0, 2), last=st.integers(0, 2))
def test_what_becomes_deeper_has_the_groups_of_what_is_deep(times: int, blocks: int, first: int, last: int) -> None:
    """Growing b layers and joining b times as many give the same sharing."""
    for kind in (Adjacent, Loop):
        pattern = kind(times=times, first=first, last=last)
        order = pattern.order(first + blocks + last)
        grown = tuple(tuple(i for i, layer in enumerate(order) if layer == one) for one in dict.fromkeys(order))
        joined = sharing_layers((LayerConfig(),) * len(order), pattern.groups(len(order)))
        homes = [i if layer.weights is None else layer.weights for i, layer in enumerate(joined)]
        assert {group for group in grown if len(group) > 1} == {
            tuple(i for i, home in enumerate(homes) if home == one) for one in set(homes) if homes.count(one) > 1
        }


def lost(similarity: np.ndarray, groups: Groups) -> float:
    """Sum of squared distances from each group's mean, for unit vectors with these products."""
    total = 0.0
    for group in groups:
        total += len(group) - similarity[np.ix_(group, group)].sum() / len(group)
    return total


@settings(max_examples=60, deadline=None)
@given(num_layers=st.integers(2, 8), seed=st.integers(0, 1000), data=st.data())
def test_the_search_finds_the_best_of_all_cuts(num_layers: int, seed: int, data: st.DataObject) -> None:
    vectors = np.random.default_rng(seed).standard_normal((num_layers, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    first = data.draw(st.integers(0, num_layers - 1))
    last = data.draw(st.integers(0, num_layers - 1 - first))
    wanted = data.draw(st.integers(1, num_layers - first - last))
    pattern = Similar(num_stored=wanted + first + last, first=first, last=last)
    found = most_alike(similarity, pattern)
    assert [layer for group in found for layer in group] == list(range(first, num_layers - last))
    assert len(found) == wanted
    best = min(
        lost(
            similarity,
            tuple(tuple(range(a, b)) for a, b in zip((first, *cuts), (*cuts, num_layers - last), strict=True)),
        )
        for cuts in combinations(range(first + 1, num_layers - last), wanted - 1)
    )
    assert lost(similarity, found) == pytest.approx(best, abs=1e-9)


def test_sharing_layers() -> None:
    layers = (LayerConfig(window=8), LayerConfig(), LayerConfig(window=8, rope=1), LayerConfig())
    found = sharing_layers(layers, ((0, 2), (1,)), rank=3, own_first=True, entry_bias=True)
    assert found == (
        LayerConfig(window=8),
        LayerConfig(),
        LayerConfig(window=8, rope=1, weights=0, residue_rank=3, entry_bias=True),
        LayerConfig(),
    )
    assert [layer.residue_rank for layer in sharing_layers(layers, ((0, 1, 2, 3),), rank=2)] == [2] * 4


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (Adjacent(), "5 layers between the 0 first and the 0 last do not divide into 2"),
        (Loop(times=3, first=0), "4 layers between the 0 first and the 1 last do not divide into 3"),
        (Loop(first=3, last=2), "layers between the ends of 5 layers"),
        (Loop(times=0), "times of at least 1"),
        (Given(together=((0, 1), (1, 2))), "once at most"),
        (Given(together=((0, 5),)), "layers 0 to 4"),
        (Similar(num_stored=6), "num_stored is 6; sought 1 to 5"),
        (Similar(num_stored=2, first=1, last=1), "sought 3 to 5"),
    ],
)
def test_what_does_not_fit_is_refused(pattern: Pattern, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        most_alike(np.eye(5), pattern) if isinstance(pattern, Similar) else pattern.groups(5)
