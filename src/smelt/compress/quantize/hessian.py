"""The Hessian of a matrix's output error, summed as its inputs come by, and the factor that GPTQ and SparseGPT walk.

For one output row w the squared error over n input rows X is (w - q) X^T X (w - q)^T, so that every row of the matrix
shares H = 2 X^T X / n (Frantar and Alistarh 2022, arXiv:2208.11580). Shapes: N input rows (tokens), I inputs,
O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from smelt.core.errors import TrainingError

_RAISED = (0.01, 0.1, 1.0, 10.0, 100.0)  # times the mean of the diagonal, where the damping asked for is not enough


@dataclass(slots=True)
class Hessian:
    """total: X^T X so far, [I, I], float32 (or float64); num_rows: the rows it is a sum over.

    Sums of parts of the rows, added, are the sum over all of them, so that parts may be taken apart.
    """

    total: Tensor
    num_rows: int = 0

    @classmethod
    def empty(cls, width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Self:
        """No rows yet, for inputs of `width` numbers."""
        return cls(torch.zeros(width, width, dtype=dtype, device=device))

    def add(self, rows: Tensor) -> None:
        """More inputs, [..., I]; widened to the sum's dtype before they are multiplied."""
        rows_NI = rows.detach().reshape(-1, rows.shape[-1]).to(self.total.dtype)
        self.total.addmm_(rows_NI.T, rows_NI)
        self.num_rows += rows_NI.shape[0]

    def merge(self, other: Hessian) -> None:
        """The rows of both."""
        self.total += other.total
        self.num_rows += other.num_rows

    @property
    def mean(self) -> Tensor:
        """H = 2 X^T X / n, [I, I]; zeros where no rows were seen."""
        return self.total * (2.0 / max(1, self.num_rows))


def dead_inputs(H_II: Tensor) -> Tensor:
    """Inputs that were zero in every row, [I] bool: no weight behind them changes an output that was seen."""
    return H_II.diagonal() == 0


def output_error(change_OI: Tensor, H_II: Tensor) -> Tensor:
    """d H d^T / 2 of every row d of a weight's change, [O]: the mean squared error of its output over the rows seen."""
    return ((change_OI.to(H_II.dtype) @ H_II) * change_OI).sum(1) / 2


def inverse_factor(H_II: Tensor, *, damping: float = 0.01) -> Tensor:
    """Upper triangular U with U^T U = (H + d 1)^-1, [I, I]; d: `damping` times the mean of H's diagonal at live inputs.

    Row i of U, divided by U[i, i], is how an error in column i spreads over the columns behind it when those before
    are fixed. Dead inputs, which have a say in nothing, get that mean. Where H is still no positive definite matrix in
    its precision, more is added, up to a hundred times the mean. Raises TrainingError where that does not help (an H
    with numbers that are not finite).
    """
    damped_II = H_II.clone()
    diagonal_I = damped_II.diagonal()
    dead_I = dead_inputs(H_II)
    mean = 1.0 if bool(dead_I.all()) else float(diagonal_I[~dead_I].mean())
    diagonal_I[dead_I] = mean
    added = 0.0
    for share in (damping, *(raised for raised in _RAISED if raised > damping)):
        diagonal_I += share * mean - added
        added = share * mean
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if int(failed) == 0:
            upper_II: Tensor
            upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
            if int(failed) == 0 and bool(torch.isfinite(upper_II).all()):
                return upper_II
    raise TrainingError(
        f"Hessian of {H_II.shape[0]} inputs: sought a positive definite matrix, found none even with "
        f"{_RAISED[-1]:g} times its mean diagonal added: are the calibration inputs finite numbers?"
    )
