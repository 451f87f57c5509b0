"""GPTQ: columns are rounded one after the other, and those behind make up for each one's error.

Rounding changes the output by d = w - q; what is left of the row can be moved so that the output moves back. The best
move is known in closed form from the Hessian of the output error, and the Cholesky factor of its inverse holds the
moves of every step (Frantar et al. 2022, arXiv:2210.17323). Columns that matter most go first ("act-order").

Scales are of the weights as they were ("static groups"): whatever the order, a group's scale is known when its first
column comes, and the columns stay where they are, so no reader needs to know an order.
Shapes: O outputs, I inputs, G groups, b columns of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smelt.compress.quantize import grid
from smelt.compress.quantize.hessian import inverse_factor, output_error
from smelt.core.quantization import WeightFormat

_BLOCK_LEN = 128  # columns whose moves are made at once for all that come behind: a matrix product instead of vectors


@torch.no_grad()
def gptq(
    weight_OI: Tensor,
    hessian_II: Tensor,
    scales_OG: Tensor,
    zeros_OG: Tensor | None,
    format: WeightFormat,
    *,
    act_order: bool = True,
    damping: float = 0.01,
) -> Tensor:
    """Codes int8 [O, I] on the given scales, whose output error is in no row above that of rounding to nearest.

    hessian_II: 2 X^T X / n of the inputs, or any multiple. Columns whose input never was anything but zero are
    rounded to nearest: GPTQ's authors set them to zero, which is the same on the calibration set and no better
    anywhere else. Raises TrainingError where the Hessian is no positive matrix even after heavy damping.
    """
    greedy_OI = greedy_codes(weight_OI, hessian_II, scales_OG, zeros_OG, format, act_order=act_order, damping=damping)
    nearest_OI = grid.codes(weight_OI, scales_OG, zeros_OG, format)
    errors = [
        output_error(grid.dequantized(codes_OI, scales_OG, zeros_OG, format) - weight_OI, hessian_II)
        for codes_OI in (greedy_OI, nearest_OI)
    ]
    # One step at a time is no guarantee for the sum of all; rows do not depend on each other, so each can choose.
    return torch.where((errors[0] <= errors[1])[:, None], greedy_OI, nearest_OI)


def greedy_codes(
    weight_OI: Tensor,
    hessian_II: Tensor,
    scales_OG: Tensor,
    zeros_OG: Tensor | None,
    format: WeightFormat,
    *,
    act_order: bool = True,
    damping: float = 0.01,
) -> Tensor:
    """The algorithm itself: codes int8 [O, I], without the comparison to rounding."""
    width = weight_OI.shape[1]
    order_I = torch.arange(width, device=weight_OI.device)
    if act_order:
        order_I = torch.argsort(hessian_II.diagonal(), descending=True, stable=True)
    factor_II = inverse_factor(hessian_II[order_I][:, order_I], damping=damping)
    # A copy, turned: columns lie in one piece, and the caller's weight is not touched.
    rest_IO = weight_OI.T[order_I].to(torch.promote_types(factor_II.dtype, scales_OG.dtype)).contiguous()
    factor_II = factor_II.to(rest_IO.dtype)
    group_of = (order_I // (format.group_size or width)).tolist()
    scales_GO = scales_OG.T.contiguous()
    zeros_GO = None if zeros_OG is None else zeros_OG.T.contiguous()
    found_IO = torch.empty(rest_IO.shape, dtype=torch.int8, device=weight_OI.device)
    for start in range(0, width, _BLOCK_LEN):
        end = min(start + _BLOCK_LEN, width)
        errors_bO = torch.empty_like(rest_IO[start:end])
        for i in range(start, end):
            scale_O, zero_O = scales_GO[group_of[i]], None if zeros_GO is None else zeros_GO[group_of[i]]
            found_IO[i] = grid.codes_of(rest_IO[i], scale_O, zero_O, format)
            error_O = (rest_IO[i] - grid.values_of(found_IO[i], scale_O, zero_O)) / factor_II[i, i]
            rest_IO[i + 1 : end].addr_(factor_II[i, i + 1 : end], error_O, alpha=-1)
            errors_bO[i - start] = error_O
        rest_IO[end:].addmm_(factor_II[start:end, end:].T, errors_bO, alpha=-1)
    codes_IO = torch.empty_like(found_IO)
    codes_IO[order_I] = found_IO
    return codes_IO.T.contiguous()
