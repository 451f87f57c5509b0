"""Muon (Jordan 2024) for matrices, AdamW (Loshchilov and Hutter 2019) for the rest, as one optimizer with plain state.

The orthogonalisation runs in float32: on a CPU without bf16 multipliers bf16 is the slower one, and at these
widths its cost is a few percent of a step. Matrices of one shape are orthogonalised together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from smelt.train.config import OptimizerConfig

Spread = Callable[..., Iterable[Any]]
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(batch: Tensor, num_steps: int = 5) -> Tensor:
    """[N, rows, cols] to the nearest matrices with singular values near 1 (quintic Newton-Schulz iteration)."""
    a, b, c = _COEFFICIENTS
    tall = batch.shape[-2] > batch.shape[-1]
    x = batch.mT if tall else batch
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal


class Optimizer:
    """Takes steps at `scale` times the configured rates. `spread` is `map`, or a pool's: groups are independent."""

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, spread: Spread = map
    ) -> None:
        self.config, self.spread = config, spread
        self.named = dict(parameters)
        self.matrices = [n for n, p in self.named.items() if p.ndim == 2 and ".layers." in n]
        self.others = [n for n in self.named if n not in set(self.matrices)]
        self.state: dict[str, Tensor] = {f"momentum.{n}": torch.zeros_like(self.named[n]) for n in self.matrices}
        for n in self.others:
            self.state[f"mean.{n}"] = torch.zeros_like(self.named[n])
            self.state[f"square.{n}"] = torch.zeros_like(self.named[n])

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], scale: float, number: int) -> float:
        """Update every parameter from its gradient (which it may change); `number` counts steps from 1.

        Returns the gradient's norm before clipping.
        """
        norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients.values()])))
        factor = min(1.0, self.config.clip_norm / (norm + 1e-6))
        for gradient in gradients.values():
            gradient.mul_(factor)
        self._muon(gradients, scale)
        self._adam(gradients, scale, number)
        return norm

    def _muon(self, gradients: dict[str, Tensor], scale: float) -> None:
        shapes: dict[torch.Size, list[str]] = {}
        for name in self.matrices:
            shapes.setdefault(self.named[name].shape, []).append(name)
        list(self.spread(lambda names: self._muon_group(names, gradients, scale), shapes.values()))

    @torch.no_grad()
    def _muon_group(self, names: list[str], gradients: dict[str, Tensor], scale: float) -> None:
        """Matrices of one shape."""
        lr, beta = self.config.muon_lr * scale, self.config.momentum
        looked_ahead = []
        for name in names:
            momentum = self.state[f"momentum.{name}"]
            momentum.lerp_(gradients[name], 1 - beta)
            looked_ahead.append(gradients[name].lerp(momentum, beta))
        rows, cols = looked_ahead[0].shape
        size = max(1.0, rows / cols) ** 0.5
        for name, update in zip(names, orthogonalize(torch.stack(looked_ahead)), strict=True):
            self.named[name].mul_(1 - lr * self.config.weight_decay).add_(update, alpha=-lr * size)

    def _adam(self, gradients: dict[str, Tensor], scale: float, number: int) -> None:
        first, second = self.config.betas
        lr = self.config.adam_lr * scale
        for name in self.others:
            mean, square = self.state[f"mean.{name}"], self.state[f"square.{name}"]
            mean.lerp_(gradients[name], 1 - first)
            square.mul_(second).addcmul_(gradients[name], gradients[name], value=1 - second)
            denominator = (square / (1 - second**number)).sqrt_().add_(self.config.eps)
            self.named[name].addcdiv_(mean / (1 - first**number), denominator, value=-lr)
