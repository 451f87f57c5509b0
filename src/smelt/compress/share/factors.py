"""One matrix in place of several, and what each layer keeps of its own: a low-rank product.

Relaxed Recursive Transformers (Bae et al. 2024, arXiv:2410.20672), section 2.3: the shared matrix, and an SVD of what
is left. Shapes: N layers of a group, O outputs, I inputs, R rank.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Init = Literal["mean", "first"]


def shared_matrix(weights_NOI: Tensor, init: Init) -> Tensor:
    """[O, I]: the mean, which has the least squared distance from all, or the group's first."""
    return weights_NOI.mean(0) if init == "mean" else weights_NOI[0]


def low_rank(difference_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """expand [O, R] and reduce [R, I], whose product is the nearest of rank R (Eckart and Young 1936).

    R is at most the smaller side, and the product exact there. Both have singular values that are the roots of the
    difference's, so that an optimizer finds them equally large. In float64, by the eigenvectors of the smaller side.
    """
    wide = difference_OI.double()
    if wide.shape[0] > wide.shape[1]:
        expand_IR, reduce_RO = low_rank(wide.mT, rank)
        return reduce_RO.mT.contiguous(), expand_IR.mT.contiguous()
    rank = min(rank, wide.shape[0])
    squares, vectors_OO = torch.linalg.eigh(wide @ wide.mT)  # ascending
    basis_OR = vectors_OO.flip(1)[:, :rank]
    root_R = squares.flip(0)[:rank].clamp_min(0).pow(0.25)
    most = float(root_R.amax()) if rank else 0.0
    root_R = root_R.clamp_min(
        most * 1e-4 if most else 1.0
    )  # what is next to nothing stays so, and is not divided by it
    return basis_OR * root_R, (basis_OR.mT @ wide) / root_R[:, None]


def energy(x: Tensor) -> float:
    """Squared length."""
    return float(x.double().square().sum())
