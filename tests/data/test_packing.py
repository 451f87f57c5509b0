"""Packing: every pair of token and successor once, none across a border, next to no padding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.core.errors import DataError
from smelt.data.batches import Encoded
from smelt.data.packing import Piece, fitted, lay_out, pack

PAD = 0


def document(number: int, length: int, *, cuttable: bool = False) -> Piece:
    """Ids that name their document and place; every third token is learned."""
    ids = [1000 * (number + 1) + i for i in range(length + 1)]
    mask = bytes(i % 3 == 0 for i in range(length + 1))
    return Piece.of(Encoded(ids, mask, bytes(i % 6 for i in range(length + 1))), cuttable=cuttable)


def pairs(pieces: list[Piece]) -> Counter[tuple[int, int, int]]:
    return Counter(
        triple
        for piece in pieces
        for triple in zip(piece.inputs.tolist(), piece.targets.tolist(), piece.privileges.tolist(), strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(
    whole=st.lists(st.integers(1, 20), max_size=30),
    loose=st.lists(st.integers(1, 70), max_size=12),
    row_len=st.just(20),
)
def test_every_pair_once_in_as_few_rows_as_text_allows(whole: list[int], loose: list[int], row_len: int) -> None:
    pieces = [document(i, n) for i, n in enumerate(whole)]
    pieces += [document(100 + i, n, cuttable=True) for i, n in enumerate(loose)]
    rows = pack(pieces, row_len)
    assert pairs([piece for row in rows for piece in row]) == pairs(pieces)
    used = [sum(len(piece) for piece in row) for row in rows]
    assert all(0 < n <= row_len for n in used)
    alone = len(pack(pieces[: len(whole)], row_len))
    assert len(rows) == max(alone, -(-sum(used) // row_len)), "text opens a row only when all others are full"
    intact = [piece for row in rows for piece in row if not piece.cuttable]
    assert sorted(len(piece) for piece in intact) == sorted(whole), "no conversation is cut"


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_best_fit_is_near_the_fewest_rows(lengths: list[int]) -> None:
    """Best-fit decreasing needs at most 11/9 of the fewest rows plus 1 (Johnson 1974)."""
    rows = pack([document(i, n) for i, n in enumerate(lengths)], 20)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 20) + 1 or len(rows) <= sum(n > 10 for n in lengths) + 1


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_a_row_as_laid_out(lengths: list[int]) -> None:
    """Targets are next tokens of the same document; padding is at the end, marked, and not learned."""
    pieces = [document(i, n) for i, n in enumerate(lengths)]
    batch = lay_out(pack(pieces, 24), 24, PAD, privileges=True)
    assert batch.segment_ids is not None
    assert batch.privileges is not None
    assert batch.num_tokens == sum(lengths)
    found: Counter[tuple[int, int, int]] = Counter()
    for inputs, targets, segments, speakers in zip(
        batch.inputs.tolist(),
        batch.targets.tolist(),
        batch.segment_ids.tolist(),
        batch.privileges.tolist(),
        strict=True,
    ):
        inside = [segment for segment in segments if segment >= 0]
        assert segments == inside + [-1] * (24 - len(inside))
        assert inside == sorted(inside)
        assert set(inside) == set(range(max(inside) + 1))
        assert all(i == PAD and t == -100 for i, t in zip(inputs[len(inside) :], targets[len(inside) :], strict=True))
        for token, target, segment in zip(inputs, targets, segments, strict=True):
            assert target in (-100, token + 1), "the successor"
            assert segment < 0 or token // 1000 == inputs[segments.index(segment)] // 1000, "one document"
        found.update(zip(inputs[: len(inside)], targets[: len(inside)], speakers[: len(inside)], strict=True))
    assert found == pairs(pieces)


def test_long_documents_are_cut_at_the_row_or_left_out() -> None:
    long, short = document(0, 45), document(1, 20)
    assert fitted([long, short], 20, "leave_out") == [short]
    parts = fitted([long, short], 20, "cut")
    assert [len(part) for part in parts] == [20, 20, 5, 20]
    assert pairs(parts) == pairs([long, short])
    with pytest.raises(DataError, match="at most 20 tokens a row, found one of 45"):
        pack([long], 20)


def test_the_same_documents_give_the_same_rows() -> None:
    rng = np.random.default_rng(0)
    pieces = [document(i, int(n), cuttable=i % 5 == 0) for i, n in enumerate(rng.integers(1, 60, 300))]
    first, second = (lay_out(pack(pieces, 64), 64, PAD) for _ in range(2))
    assert np.array_equal(first.inputs, second.inputs)
    assert first.num_tokens / first.inputs.size > 0.99
    assert first.privileges is None
