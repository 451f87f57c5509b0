"""Which weights go: exact counts, whatever the scores, against plain sorting; patterns; the planted outlier."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smelt.compress.sparse.masks import Pattern, Scope, dropped, lowest, num_dropped, wanda_scores
from smelt.core.errors import InvalidRequestError


def plain(scores: list[float], count: int) -> list[bool]:
    """The slow twin: sort, take the first."""
    chosen = sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]
    return [i in chosen for i in range(len(scores))]


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5, 7.0]), min_size=8, max_size=8), min_size=1, max_size=5),
    st.floats(0.0, 0.99),
)
def test_counts_are_exact_also_among_equals(rows: list[list[float]], share: float) -> None:
    scores = torch.tensor(rows)
    by_row = dropped({"m": scores}, share=share, scope="row")["m"]
    assert by_row.tolist() == [plain(row, num_dropped(8, share)) for row in rows]
    flat = [score for row in rows for score in row]
    by_matrix = dropped({"m": scores}, share=share, scope="matrix")["m"]
    assert by_matrix.flatten().tolist() == plain(flat, num_dropped(len(flat), share))
    together = dropped({"m": scores, "n": scores + 1}, share=share, scope="global")
    both = [*flat, *(score + 1 for score in flat)]
    found = torch.cat([together["m"].flatten(), together["n"].flatten()]).tolist()
    assert found == plain(both, num_dropped(len(both), share))
    groups = dropped({"m": scores}, pattern=Pattern(2, 4))["m"]
    assert groups.view(-1, 4).tolist() == [plain(flat[i : i + 4], 2) for i in range(0, len(flat), 4)]


@pytest.mark.parametrize("text", ["2:4", "4:8", "1:2"])
def test_a_pattern_keeps_n_of_every_m(text: str) -> None:
    pattern = Pattern.parse(text)
    assert str(pattern) == text
    drop = dropped({"m": torch.randn(5, 16)}, pattern=pattern)["m"]
    assert (drop.view(-1, pattern.of).sum(1) == pattern.of - pattern.kept).all()
    assert drop.double().mean() == pattern.share


@pytest.mark.parametrize("text", ["", "2", "4:4", "0:4", "5:4", "2:4:8", "-2:4", "a:b"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="pattern is"):
        Pattern.parse(text)


def test_global_counts_move_between_matrices_and_rows_do_not() -> None:
    small, large = torch.rand(4, 8), 10 + torch.rand(4, 8)
    scopes: dict[Scope, tuple[int, int]] = {"global": (32, 0), "matrix": (16, 16), "row": (16, 16)}
    for scope, counts in scopes.items():
        found = dropped({"small": small, "large": large}, share=0.5, scope=scope)
        assert (int(found["small"].sum()), int(found["large"].sum())) == counts


def test_nothing_is_dropped_at_a_share_of_zero() -> None:
    assert not lowest(torch.zeros(3, 3), 0).any()


def test_magnitude_kills_the_small_weights_of_a_loud_input_and_wanda_keeps_them() -> None:
    """The planted outlier (Dettmers et al. 2022): an input a hundred times as loud, behind weights a tenth as large."""
    torch.manual_seed(0)
    weight, inputs = torch.randn(32, 64).double(), torch.randn(512, 64).double()
    inputs[:, 5] *= 100
    weight[:, 5] = 0.05 * torch.sign(weight[:, 5])
    by_size = dropped({"m": weight.abs()}, share=0.5, scope="row")["m"]
    by_wanda = dropped({"m": wanda_scores(weight, inputs.square().sum(0))}, share=0.5, scope="row")["m"]
    assert by_size[:, 5].all()
    assert not by_wanda[:, 5].any()

    def error(drop: Tensor) -> float:
        return float((inputs @ weight.masked_fill(drop, 0.0).T - inputs @ weight.T).square().mean())

    assert error(by_wanda) < 0.5 * error(by_size)


def test_wanda_scores_are_size_times_norm() -> None:
    weight, inputs = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[3.0, 1.0], [4.0, 0.0]])
    assert wanda_scores(weight, inputs.square().sum(0)).tolist() == [[5.0, 2.0], [15.0, 0.5]]
