"""SparseGPT: columns are pruned one after the other, and those behind make up for what went (Frantar and Alistarh 2023,
arXiv:2301.00774).

A weight is worth w^2 / U_ii^2: what the output loses without it after the best repair; U is the factor that GPTQ walks.
The paper chooses among all rows of a block of columns; here each row drops its own share, so that sparsity is exact in
every row. Shapes: O outputs, I inputs, b columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smelt.compress.quantize.hessian import dead_inputs, inverse_factor, output_error
from smelt.compress.sparse.masks import Pattern, lowest_in_groups, lowest_in_rows, num_dropped

_BLOCK_LEN = 128

Rounded = Callable[[Tensor, int], Tensor]
"""What a format holds of a column's values [O], and the column's index: pruning and rounding in one sweep."""


@torch.no_grad()
def sparsegpt(
    weight_OI: Tensor,
    hessian_II: Tensor,
    *,
    share: float = 0.0,
    pattern: Pattern | None = None,
    damping: float = 0.01,
    rounded: Rounded | None = None,
) -> tuple[Tensor, Tensor]:
    """The new weights [O, I], and which of them were dropped, [O, I].

    hessian_II: 2 X^T X / n of the inputs. In no row is the output error above that of dropping the same weights and
    repairing nothing. rounded: see `Rounded`; dropped weights stay zero. Raises TrainingError where the Hessian is no
    positive matrix even after heavy damping.
    """
    factor_II = inverse_factor(hessian_II, damping=damping)
    dead_I = dead_inputs(hessian_II)
    rest_IO = weight_OI.T.to(factor_II.dtype).contiguous()
    drop_IO = torch.zeros_like(rest_IO, dtype=torch.bool)
    width = len(rest_IO)
    block_len = _BLOCK_LEN if pattern is None else _BLOCK_LEN // pattern.of * pattern.of or pattern.of
    for start in range(0, width, block_len):
        end = min(start + block_len, width)
        if pattern is None:
            count = num_dropped(end, share) - num_dropped(start, share)
            worth_Ob = _worth(rest_IO, factor_II, dead_I, slice(start, end))
            drop_IO[start:end] = lowest_in_rows(worth_Ob, count).T
        errors_bO = torch.empty_like(rest_IO[start:end])
        for i in range(start, end):
            if pattern is not None and i % pattern.of == 0:
                group = slice(i, i + pattern.of)
                drop_IO[group] = lowest_in_groups(_worth(rest_IO, factor_II, dead_I, group), pattern).T
            kept_O = _stored(rest_IO[i], drop_IO[i], i, rounded)
            error_O = (rest_IO[i] - kept_O) / factor_II[i, i]
            rest_IO[i + 1 : end] -= factor_II[i, i + 1 : end, None] * error_O
            rest_IO[i], errors_bO[i - start] = kept_O, error_O
        rest_IO[end:] -= factor_II[start:end, end:].T @ errors_bO
    plain_IO = weight_OI.T.to(rest_IO.dtype)
    plain_IO = torch.stack([_stored(plain_IO[i], drop_IO[i], i, rounded) for i in range(width)])
    return _better(weight_OI, hessian_II, rest_IO.T, plain_IO.T), drop_IO.T.contiguous()


def _worth(rest_IO: Tensor, factor_II: Tensor, dead_I: Tensor, columns: slice) -> Tensor:
    """What the output loses without each weight, [O, b]; nothing behind an input that was never there."""
    worth_bO = (rest_IO[columns] / factor_II.diagonal()[columns, None]).square()
    return worth_bO.masked_fill(dead_I[columns, None], 0.0).T


def _stored(values_O: Tensor, drop_O: Tensor, column: int, rounded: Rounded | None) -> Tensor:
    held_O = values_O if rounded is None else rounded(values_O, column)
    return held_O.masked_fill(drop_O, 0.0)


def _better(weight_OI: Tensor, hessian_II: Tensor, repaired_OI: Tensor, plain_OI: Tensor) -> Tensor:
    """Of two replacements the one that errs less, row by row: greedy steps, damped, guarantee nothing for their sum."""
    errors = [output_error(found_OI - weight_OI, hessian_II) for found_OI in (repaired_OI, plain_OI)]
    return torch.where((errors[0] <= errors[1])[:, None], repaired_OI, plain_OI).to(weight_OI.dtype).contiguous()
