"""The head and the loss in pieces: values and gradients equal to those of the whole, for every kind of piece."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smelt.train import losses
from smelt.train.linear_loss import chunked_loss, chunked_values

N, H, V = 23, 7, 31


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(V, H, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.randint(0, V, (N,), generator=generator)
    teacher = torch.randn(N, V, dtype=torch.float64, generator=generator)
    return hidden, weight, targets, teacher


_, _, TARGETS, TEACHER = inputs()
PIECES: dict[str, Callable[[Tensor, slice], Tensor]] = {
    "ce": lambda logits, rows: losses.cross_entropy(logits, TARGETS[rows]),
    "forward": lambda logits, rows: losses.forward_kl(logits, TEACHER[rows], temperature=2.0),
    "reverse": lambda logits, rows: losses.reverse_kl(logits, TEACHER[rows]),
    "jsd": lambda logits, rows: losses.generalised_jsd(logits, TEACHER[rows], beta=0.3, temperature=0.9),
}


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("piece_len", [1, 4, N, 1000, None])
def test_pieces_equal_the_whole(name: str, piece_len: int | None) -> None:
    """Loss and gradients to 1e-10 in float64, also with a factor behind the sum, as the mean over a count is."""
    hidden, weight, _, _ = inputs()
    piece = PIECES[name]
    whole = piece(F.linear(hidden, weight), slice(None)).sum()
    sought = torch.autograd.grad(0.25 * whole, (hidden, weight))
    summed = chunked_loss(hidden, weight, lambda logits, rows: piece(logits, rows).sum(), piece_len=piece_len)
    values = chunked_values(hidden, weight, piece, piece_len=piece_len)
    for total in (summed, values.sum()):
        assert torch.allclose(total, whole, rtol=0, atol=1e-10)
        for found, expected in zip(torch.autograd.grad(0.25 * total, (hidden, weight)), sought, strict=True):
            assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_values_take_a_different_gradient_each() -> None:
    """What DPO needs: a function of sums of log-probabilities, which is no sum over tokens."""
    hidden, weight, targets, _ = inputs()

    def loss(log_probs: Tensor) -> Tensor:
        return -F.logsigmoid(0.1 * (log_probs[:9].sum() - log_probs[9:].sum()))

    whole = loss(losses.token_log_probs(F.linear(hidden, weight), targets))
    pieces = loss(
        chunked_values(hidden, weight, lambda logits, rows: losses.token_log_probs(logits, targets[rows]), piece_len=4)
    )
    sought = torch.autograd.grad(whole, (hidden, weight))
    for found, expected in zip(torch.autograd.grad(pieces, (hidden, weight)), sought, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, targets, _ = inputs()

    def summed(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked_loss(hidden, weight, lambda z, rows: losses.cross_entropy(z, targets[rows]).sum(), piece_len=5)

    def values(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked_values(hidden, weight, lambda z, rows: losses.cross_entropy(z, targets[rows]), piece_len=5)

    assert torch.autograd.gradcheck(summed, (hidden, weight))
    assert torch.autograd.gradcheck(values, (hidden, weight))


def test_no_piece_is_larger_than_told_and_none_is_computed_twice() -> None:
    hidden, weight, targets, _ = inputs()
    seen: list[tuple[int, ...]] = []

    def piece(logits: Tensor, rows: slice) -> Tensor:
        seen.append(tuple(logits.shape))
        return losses.cross_entropy(logits, targets[rows]).sum()

    torch.autograd.grad(chunked_loss(hidden, weight, piece, piece_len=10), (hidden, weight))
    assert seen == [(10, V), (10, V), (3, V)]


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    hidden, weight, targets, _ = inputs()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    total = chunked_loss(hidden, weight, lambda z, rows: losses.cross_entropy(z, targets[rows]).sum())
    total.backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_without_gradients_only_the_sum_is_computed() -> None:
    hidden, weight, targets, _ = inputs()
    with torch.no_grad():
        total = chunked_loss(hidden, weight, lambda z, rows: losses.cross_entropy(z, targets[rows]).sum(), piece_len=4)
    assert not total.requires_grad
    assert torch.allclose(total, F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum"))


def test_no_rows_are_a_loss_of_zero() -> None:
    _, weight, targets, _ = inputs()
    hidden = torch.zeros(0, H, dtype=torch.float64, requires_grad=True)
    total = chunked_loss(hidden, weight, lambda z, rows: losses.cross_entropy(z, targets[:0][rows]).sum())
    total.backward()
    assert total == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_half_precision_product_keeps_a_wide_loss() -> None:
    """Under autocast the matrix product is bf16; the loss and the head's summed gradient stay float32."""
    hidden, weight, targets, _ = inputs()
    narrow, head = hidden.detach().bfloat16().requires_grad_(), weight.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = chunked_loss(narrow, head, lambda z, rows: losses.cross_entropy(z, targets[rows]).sum(), piece_len=6)
    total.backward()
    whole = F.cross_entropy(F.linear(narrow.float(), head.bfloat16().float()), targets, reduction="sum")
    (sought,) = torch.autograd.grad(whole, head)
    assert total.dtype == torch.float32
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.bfloat16
    assert head.grad is not None
    assert torch.allclose(total, whole, rtol=2e-2)
    assert torch.allclose(head.grad, sought, atol=0.1)
