"""Layers that compute with another layer's matrices, and what tells them apart.

Published forms: each block run twice in a row (MobileLLM-LS, Liu et al. 2024, arXiv:2402.14905), blocks in the middle
looped (Universal Transformer, Dehghani et al. 2018, arXiv:1807.03819), a low-rank product of each layer's own beside
the shared matrix (Relaxed Recursive Transformers, Bae et al. 2024, arXiv:2410.20672).

Shapes: I inputs, O outputs, R rank, H hidden width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smelt.core.decoder import MATRICES


class Residue(nn.Module):
    """A layer's own addition to a matrix: expand [O, R] by reduce [R, I]; nothing until it has learned something."""

    def __init__(self, num_inputs: int, num_outputs: int, rank: int) -> None:
        super().__init__()
        self.reduce = nn.Parameter(torch.randn(rank, num_inputs) * num_inputs**-0.5)
        self.expand = nn.Parameter(torch.zeros(num_outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return F.linear(F.linear(x, self.reduce), self.expand)


class Entry(nn.Module):
    """A vector [H] of the layer's own, added to the residual stream in front of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] to [..., H]."""
        return x + self.bias.to(x.dtype)


def make_residue(linear: nn.Linear, rank: int) -> Residue | None:
    """Beside `linear`, of rank `rank` or the matrix's smaller side; None for rank 0."""
    rank = min(rank, linear.in_features, linear.out_features)
    return Residue(linear.in_features, linear.out_features, rank) if rank else None


def projected(linear: nn.Module, residue: nn.Module | None, x: Tensor) -> Tensor:
    """x through a matrix, and through the residue beside it where there is one.

    Two modules, so that whoever exchanges the matrix (fake quantization, adapters) leaves the residue as it is.
    """
    out = cast(Tensor, linear(x))
    return out if residue is None else out + cast(Tensor, residue(x))


def borrow_matrices(layer: nn.Module, home: nn.Module) -> None:
    """Let every matrix of `layer` be that of `home`: one parameter, which sums the gradients of all its uses."""
    for stem in MATRICES:
        cast(nn.Linear, layer.get_submodule(f"{stem}_proj")).weight = cast(
            nn.Linear, home.get_submodule(f"{stem}_proj")
        ).weight
