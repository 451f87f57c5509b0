"""The optimizer against its slow twins: torch's AdamW, the singular value decomposition, one matrix at a time."""

from __future__ import annotations

import torch
from torch import nn

from smelt.train.config import OptimizerConfig
from smelt.train.optim import Optimizer, orthogonalize


def test_orthogonalize_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((12, 12), (8, 40), (40, 8)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_orthogonalize_keeps_the_singular_directions() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(6, 10)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonalize(matrix[None])[0] @ vh.T
    off_diagonal = turned - torch.diag(turned.diagonal())
    assert off_diagonal.abs().max() < 1e-4


def test_vectors_follow_adam() -> None:
    torch.manual_seed(2)
    ours, theirs = nn.Parameter(torch.randn(7)), nn.Parameter(torch.zeros(7))
    theirs.data.copy_(ours.data)
    config = OptimizerConfig(adam_lr=0.01, clip_norm=1e9)
    optimizer = Optimizer([("model.norm.weight", ours)], config)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=config.betas, eps=config.eps, weight_decay=0.0)
    for number in range(1, 6):
        gradient = torch.randn(7)
        optimizer.step({"model.norm.weight": gradient.clone()}, 1.0, number)
        theirs.grad = gradient
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_matrices_of_one_shape_step_as_if_alone() -> None:
    torch.manual_seed(3)
    names = ["model.layers.0.a.weight", "model.layers.1.a.weight", "model.layers.0.b.weight"]
    start = {n: torch.randn(5, 9) if ".a." in n else torch.randn(9, 5) for n in names}
    gradients = {n: torch.randn_like(t) for n, t in start.items()}

    def stepped(group: list[str]) -> dict[str, torch.Tensor]:
        parameters = {n: nn.Parameter(start[n].clone()) for n in group}
        optimizer = Optimizer(parameters.items(), OptimizerConfig(clip_norm=1e9))
        for number in (1, 2):
            optimizer.step({n: gradients[n].clone() for n in group}, 0.5, number)
        return {n: p.data for n, p in parameters.items()}

    together = stepped(names)
    for name in names:
        assert torch.allclose(stepped([name])[name], together[name], atol=1e-5)
        assert not torch.allclose(start[name], together[name])


def test_a_large_gradient_is_clipped_and_its_norm_told() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = Optimizer([("model.norm.weight", parameter)], OptimizerConfig(clip_norm=1.0))
    gradient = torch.full((4,), 50.0)
    assert abs(optimizer.step({"model.norm.weight": gradient}, 1.0, 1) - 100.0) < 1e-3
    assert abs(float(gradient.norm()) - 1.0) < 1e-3
