"""SparseGPT against its definition, against dropping without repair, and against Wanda."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smelt.compress.quantize.hessian import Hessian, output_error
from smelt.compress.sparse import sparsegpt as module
from smelt.compress.sparse.masks import Pattern, dropped, wanda_scores
from smelt.compress.sparse.sparsegpt import sparsegpt


def correlated(num_rows: int, width: int, seed: int = 0) -> Tensor:
    """Inputs of which each is a mixture of all, as those of a trained model are."""
    generator = torch.Generator().manual_seed(seed)
    mixture = torch.randn(width, width, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -2, width, dtype=torch.float64)
    return torch.randn(num_rows, width, generator=generator, dtype=torch.float64) * scale @ mixture


def drawn(rows: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hessian_of(inputs: Tensor) -> Tensor:
    found = Hessian.empty(inputs.shape[1], dtype=torch.float64)
    found.add(inputs)
    return found.mean


def by_definition(weight: Tensor, hessian: Tensor, share: float, block: int, damping: float) -> tuple[Tensor, Tensor]:
    """The slow twin: the inverse over the columns that are left, anew for every column; one row at a time."""
    width = weight.shape[1]
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    inverses = [torch.linalg.inv(damped[i:, i:]) for i in range(width)]
    found, drop = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
    for row in range(len(weight)):
        for i in range(width):
            if i % block == 0:
                end = min(width, i + block)
                worth = [float(found[row, j] ** 2 / inverses[j][0, 0]) for j in range(i, end)]
                count = round(share * end) - round(share * i)
                for j in sorted(range(end - i), key=lambda j, worth=worth: worth[j])[:count]:
                    drop[row, i + j] = True
            if drop[row, i]:
                move = found[row, i] / inverses[i][0, 0] * inverses[i][0]
                found[row, i:] -= move
                found[row, i] = 0.0
    return found, drop


def test_it_is_what_its_definition_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an inverse of its own for every column and no blocks held back. Damped as the paper damps."""
    monkeypatch.setattr(module, "_BLOCK_LEN", 8)
    weight, hessian = drawn(6, 20), hessian_of(correlated(400, 20))
    found, drop = sparsegpt(weight, hessian, share=0.4)
    expected, expected_drop = by_definition(weight, hessian, 0.4, 8, 0.01)
    assert torch.equal(drop, expected_drop)
    plain = weight.masked_fill(drop, 0.0)
    repaired = output_error(expected - weight, hessian) <= output_error(plain - weight, hessian)
    assert repaired.sum() >= 5  # elsewhere the row without repair is the better one and is taken
    assert torch.allclose(found[repaired], expected[repaired], atol=1e-9)
    assert torch.equal(found[~repaired], plain[~repaired])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_every_row_drops_its_exact_share_and_no_row_errs_more_than_without_repair(share: float) -> None:
    weight, hessian = drawn(24, 150), hessian_of(correlated(300, 150))
    found, drop = sparsegpt(weight, hessian, share=share)
    assert (drop.sum(1) == round(share * 150)).all()
    assert torch.equal(found == 0, drop)
    mask_only = output_error(weight.masked_fill(drop, 0.0) - weight, hessian)
    repaired = output_error(found - weight, hessian)
    assert (repaired <= mask_only).all()
    assert repaired.sum() < 0.5 * mask_only.sum()


@pytest.mark.parametrize("text", ["2:4", "4:8"])
def test_a_pattern_is_exact(text: str) -> None:
    pattern = Pattern.parse(text)
    weight, hessian = drawn(12, 136), hessian_of(correlated(300, 136))
    found, drop = sparsegpt(weight, hessian, pattern=pattern)
    assert torch.equal(found == 0, drop)
    assert (drop.view(-1, pattern.of).sum(1) == pattern.of - pattern.kept).all()
    mask_only = output_error(weight.masked_fill(drop, 0.0) - weight, hessian)
    assert output_error(found - weight, hessian).sum() < mask_only.sum()


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_it_errs_less_than_wanda_on_correlated_inputs(seed: int, pattern: Pattern | None) -> None:
    weight, inputs = drawn(32, 64, seed), correlated(256, 64, seed + 10)
    hessian = hessian_of(inputs)
    found, _ = sparsegpt(weight, hessian, share=0.5, pattern=pattern)
    scores = {"m": wanda_scores(weight, inputs.square().sum(0))}
    wanda = weight.masked_fill(dropped(scores, share=0.5, scope="row", pattern=pattern)["m"], 0.0)
    assert output_error(found - weight, hessian).sum() < output_error(wanda - weight, hessian).sum()


def test_where_inputs_have_nothing_in_common_nothing_is_repaired_and_wanda_is_right() -> None:
    weight, squares = drawn(8, 16), torch.linspace(0.1, 3.0, 16, dtype=torch.float64)
    found, drop = sparsegpt(weight, torch.diag(2 * squares), share=0.5, damping=1e-12)
    scores = {"m": wanda_scores(weight, squares)}
    assert torch.equal(drop, dropped(scores, share=0.5, scope="row")["m"])
    assert torch.equal(found, weight.masked_fill(drop, 0.0))


def test_weights_behind_inputs_that_never_came_go_first() -> None:
    inputs = correlated(200, 16)
    inputs[:, [2, 9]] = 0.0
    _, drop = sparsegpt(drawn(8, 16), hessian_of(inputs), share=0.25)
    assert drop[:, [2, 9]].all()


def test_rounding_in_the_same_sweep_beats_rounding_afterwards() -> None:
    weight, hessian = drawn(16, 64), hessian_of(correlated(256, 64))

    def rounded(values: Tensor, _column: int) -> Tensor:
        return (values / 0.25).round() * 0.25

    joint, drop = sparsegpt(weight, hessian, share=0.5, rounded=rounded)
    assert (drop.sum(1) == 32).all() and (joint[drop] == 0).all()
    assert torch.equal(joint, (joint / 0.25).round() * 0.25)
    alone, _ = sparsegpt(weight, hessian, share=0.5)
    behind = rounded(alone, 0)
    assert output_error(joint - weight, hessian).sum() < output_error(behind - weight, hessian).sum()


def test_the_callers_weight_is_not_touched() -> None:
    weight = drawn(4, 8)
    before = weight.clone()
    sparsegpt(weight, hessian_of(correlated(64, 8)), share=0.5)
    assert torch.equal(weight, before)
