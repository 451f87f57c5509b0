"""Every loss: gradients against finite differences in float64, limits and special cases, the size of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smelt.train import losses


def logits(seed: int, rows: int = 6, vocab: int = 11, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, vocab, dtype=torch.float64, generator=generator)).requires_grad_()


TARGETS = torch.tensor([0, 3, 10, 3, 7, 1])
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda a, b: losses.cross_entropy(a, TARGETS) + 0 * b[:, 0],
    "forward_kl": lambda a, b: losses.forward_kl(a, b, temperature=1.7),
    "reverse_kl": lambda a, b: losses.reverse_kl(a, b, temperature=0.6),
    "jsd": lambda a, b: losses.generalised_jsd(a, b, beta=0.3, temperature=1.3),
    "cosine": losses.cosine_distance,
    "squared": losses.mean_squared,
    "dpo": lambda a, b: losses.preference(losses.preference_margins(a[0], b[0], a[1], b[1]), beta=0.4),
    "dpo_smoothed": lambda a, b: losses.preference(a[0] - b[0], beta=0.4, label_smoothing=0.2),
    "ipo": lambda a, b: losses.preference(a[0] - b[0], beta=0.4, kind="ipo"),
    "rpo": lambda a, b: losses.chosen_nll(a[0], torch.arange(1, 12)) + 0 * b[0],
}
DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward": losses.forward_kl,
    "reverse": losses.reverse_kl,
    "jsd": lambda a, b, **kw: losses.generalised_jsd(a, b, beta=0.4, **kw),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], (logits(0), logits(1)))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(name: str) -> None:
    student = logits(0)
    loss = DIVERGENCES[name](student, student.detach().clone(), temperature=2.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 20.0), st.floats(0.3, 5.0))
def test_divergences_are_never_negative_and_ignore_a_shift(name: str, seed: int, scale: float, t: float) -> None:
    student, teacher = logits(seed, scale=scale), logits(seed + 1, scale=scale)
    loss = DIVERGENCES[name](student, teacher, temperature=t)
    assert loss.min() > -1e-9
    assert torch.allclose(DIVERGENCES[name](student + 3.0, teacher - 5.0, temperature=t), loss, atol=1e-8)


def test_forward_kl_is_cross_entropy_where_the_teacher_is_certain() -> None:
    student = logits(0)
    teacher = torch.full((6, 11), -200.0, dtype=torch.float64).scatter(1, TARGETS[:, None], 0.0)
    assert torch.allclose(losses.forward_kl(student, teacher), losses.cross_entropy(student, TARGETS))


def test_jsd_tends_to_both_kls_and_is_them_at_the_ends() -> None:
    student, teacher = logits(0), logits(1)
    forward, reverse = losses.forward_kl(student, teacher), losses.reverse_kl(student, teacher)
    assert torch.equal(losses.generalised_jsd(student, teacher, beta=0.0), forward)
    assert torch.equal(losses.generalised_jsd(student, teacher, beta=1.0), reverse)
    small = 1e-4
    near_forward = losses.generalised_jsd(student, teacher, beta=small) / small
    near_reverse = losses.generalised_jsd(student, teacher, beta=1 - small) / small
    assert torch.allclose(near_forward, forward, rtol=2e-3)
    assert torch.allclose(near_reverse, reverse, rtol=2e-3)
    # The distance from the limit itself falls with beta: ten times nearer, ten times smaller.
    nearer = losses.generalised_jsd(student, teacher, beta=small / 10) / (small / 10)
    assert ((nearer - forward).abs() < 0.11 * (near_forward - forward).abs()).all()


def test_jsd_at_one_half_is_symmetric_and_below_ln_two() -> None:
    a, b = logits(0, scale=30.0), logits(1, scale=30.0)
    one, other = losses.generalised_jsd(a, b, beta=0.5), losses.generalised_jsd(b, a, beta=0.5)
    assert torch.allclose(one, other)
    assert one.max() <= math.log(2) + 1e-12


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_a_beta_outside_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        losses.generalised_jsd(logits(0), logits(1), beta=beta)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_temperature_keeps_the_size_of_gradients(name: str) -> None:
    """With small logits softening divides the gradient by T^2, and the factor undoes it."""
    norms = []
    for temperature in (1.0, 2.0, 4.0):
        student = logits(0, scale=0.05)
        loss = DIVERGENCES[name](student, logits(1, scale=0.05), temperature=temperature).sum()
        norms.append(float(torch.autograd.grad(loss, student)[0].norm()))
    assert max(norms) / min(norms) < 1.05


def test_preference_at_the_start_is_ln_two() -> None:
    """The policy is the reference, so the margin is 0; the gradient raises the chosen, lowers the rejected."""
    chosen, rejected = logits(0)[0].detach().requires_grad_(), logits(1)[0].detach().requires_grad_()
    margins = losses.preference_margins(chosen, rejected, chosen.detach(), rejected.detach())
    loss = losses.preference(margins, beta=0.1)
    assert torch.equal(loss, torch.full_like(loss, math.log(2)))
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert torch.allclose(up, torch.full_like(up, -0.05))
    assert torch.allclose(down, torch.full_like(down, 0.05))


def test_swapping_the_answers_flips_the_margin() -> None:
    a, b, c, d = (logits(seed)[0] for seed in range(4))
    assert torch.allclose(losses.preference_margins(a, b, c, d), -losses.preference_margins(b, a, d, c))


def test_label_smoothing_of_one_is_the_swapped_pair_and_one_half_knows_nothing() -> None:
    margins = logits(0)[0]
    swapped = losses.preference(-margins, beta=0.3)
    assert torch.allclose(losses.preference(margins, beta=0.3, label_smoothing=1.0), swapped)
    blind = losses.preference(margins, beta=0.3, label_smoothing=0.5)
    assert torch.allclose(blind, losses.preference(-margins, beta=0.3, label_smoothing=0.5))


def test_ipo_has_its_minimum_at_its_margin_and_takes_no_smoothing() -> None:
    margins = torch.tensor([4.9, 5.0, 5.1])
    found = losses.preference(margins, beta=0.1, kind="ipo")
    assert found[1] == 0
    assert found[0] > 0
    assert found[2] > 0
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.preference(margins, kind="ipo", label_smoothing=0.1)


def test_the_rpo_term_is_the_mean_over_an_answers_tokens() -> None:
    found = losses.chosen_nll(torch.tensor([-6.0, -10.0]), torch.tensor([3.0, 5.0]))
    assert found.tolist() == [2.0, 2.0]


def test_hidden_losses_where_states_agree() -> None:
    states = logits(0)
    assert losses.mean_squared(states, states.detach()).max() == 0
    assert losses.cosine_distance(3.0 * states, states.detach()).abs().max() < 1e-12
    assert torch.allclose(losses.cosine_distance(-states, states), torch.full((6,), 2.0, dtype=torch.float64))
