"""Muon (Jordan 2024) for matrices, AdamW (Loshchilov and Hutter 2019) for the rest, as one optimizer with plain state.

The orthogonalisation runs in float32 on a CPU (where bf16 is emulated it is the slower one) and in bf16 on an
accelerator; at these widths its cost is a few percent of a step. Matrices of one shape are orthogonalised together.
Where the model is sharded every tensor here is this rank's part of it (train/distributed.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from smelt.train.config import OptimizerConfig
from smelt.train.distributed import Layout, World

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
    """Takes steps at `scale` times the configured rates; `parameters` are those it trains.

    `spread` is `map`, or may be set to a pool's: groups of matrices are independent. layout, world: how the
    parameters lie on this process, and its fellows; by default whole, and alone.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        *,
        layout: Layout | None = None,
        world: World | None = None,
    ) -> None:
        named = dict(parameters)
        self.config, self.spread = config, cast(Spread, map)
        self.world, self.layout = world or World(torch.device("cpu")), layout or Layout(named)
        self.weights = {name: self.layout.local[name] for name in named}
        self.matrices = [n for n, p in named.items() if p.ndim == 2 and ".layers." in n]
        self.others = [n for n in named if n not in set(self.matrices)]
        self.state: dict[str, Tensor] = {f"momentum.{n}": torch.zeros_like(self.weights[n]) for n in self.matrices}
        for n in self.others:
            self.state[f"mean.{n}"] = torch.zeros_like(self.weights[n])
            self.state[f"square.{n}"] = torch.zeros_like(self.weights[n])

    @torch.no_grad()
    def norm(self, gradients: Mapping[str, Tensor]) -> float:
        """Length of the whole gradient."""
        lengths = dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True))
        if not self.layout.sharded:
            return float(torch.linalg.vector_norm(torch.stack(list(lengths.values()))))
        parts = [length for name, length in lengths.items() if name in self.layout.sharded]
        wholes = [float(length) ** 2 for name, length in lengths.items() if name not in self.layout.sharded]
        (squared,) = self.world.numbers([float(torch.linalg.vector_norm(torch.stack(parts))) ** 2])
        return float((squared + sum(wholes)) ** 0.5)

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], scale: float, number: int, norm: float | None = None) -> float:
        """Update every parameter from its gradient (which it may change); `number` counts steps from 1.

        norm: the gradient's, where it is known already. Returns it, as it was before clipping.
        """
        norm = self.norm(gradients) if norm is None else norm
        torch._foreach_mul_(list(gradients.values()), min(1.0, self.config.clip_norm / (norm + 1e-6)))
        self._muon(gradients, scale)
        self._adam(gradients, scale, number)
        return norm

    def _muon(self, gradients: dict[str, Tensor], scale: float) -> None:
        shapes: dict[torch.Size, list[str]] = {}
        for name in self.matrices:
            shapes.setdefault(self.weights[name].shape, []).append(name)
        spread = map if self.layout.sharded else self.spread  # ranks must gather in one order
        list(spread(lambda names: self._muon_group(names, gradients, scale), shapes.values()))

    @torch.no_grad()
    def _muon_group(self, names: list[str], gradients: dict[str, Tensor], scale: float) -> None:
        """Matrices of one shape."""
        lr, beta = self.config.muon_lr * scale, self.config.momentum
        looked_ahead = []
        for name in names:
            momentum = self.state[f"momentum.{name}"]
            momentum.lerp_(gradients[name], 1 - beta)
            looked_ahead.append(gradients[name].lerp(momentum, beta))
        whole = torch.stack([self.layout.whole(name, part) for name, part in zip(names, looked_ahead, strict=True)])
        rows, cols = whole.shape[-2:]
        if whole.device.type == "cuda":
            updates = orthogonalize(whole.bfloat16()).to(whole.dtype)
        else:
            updates = orthogonalize(whole)
        for name, update in zip(names, updates, strict=True):
            part = self.layout.part(name, update)
            # Of a low-rank product each factor's step is scaled by the other factor already.
            size = 1.0 if "_residue." in name else max(1.0, rows / cols) ** 0.5
            self.weights[name].mul_(1 - lr * self.config.weight_decay).add_(part, alpha=-lr * size)

    def _adam(self, gradients: dict[str, Tensor], scale: float, number: int) -> None:
        first, second = self.config.betas
        lr = self.config.adam_lr * scale
        for name in self.others:
            mean, square = self.state[f"mean.{name}"], self.state[f"square.{name}"]
            mean.lerp_(gradients[name], 1 - first)
            square.mul_(second).addcmul_(gradients[name], gradients[name], value=1 - second)
            denominator = (square / (1 - second**number)).sqrt_().add_(self.config.eps)
            self.weights[name].addcdiv_(mean / (1 - first**number), denominator, value=-lr)
