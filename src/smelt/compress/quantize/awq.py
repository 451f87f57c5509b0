"""AWQ: channels whose inputs are large are scaled up before rounding and down again in front of the matrix.

One weight in a hundred matters most: those that large inputs meet. Multiplied by s before rounding, and its input
divided by s, a channel's error falls by s as long as it does not set its group's scale (Lin et al. 2023,
arXiv:2306.00978). How much is searched by what it does to the output. Then each group's range is clipped where that
lowers its output error. Shapes: I inputs, O outputs, G groups, S inputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smelt.compress.quantize import grid
from smelt.core.quantization import WeightFormat

Weights = Mapping[str, Tensor]

_SMALLEST = 1e-4  # of a channel's mean input to the power of the ratio


@dataclass(frozen=True, slots=True)
class Found:
    """What the search chose: the ratio a, its scale [I], the output error with it and without any (a = 0)."""

    ratio: float
    scale: Tensor
    error: float
    plain_error: float


def activation_scale(mean_input_I: Tensor, ratio: float) -> Tensor:
    """(mean |X_j|)^a, divided by the geometric middle of its largest and smallest, [I]; all ones at a = 0."""
    scale_I = (mean_input_I**ratio).clamp(min=_SMALLEST)
    return scale_I / (scale_I.max() * scale_I.min()).sqrt()


def search_scale(
    weights: Weights,
    mean_input_I: Tensor,
    *,
    rounded: Callable[[Tensor], Tensor],
    error: Callable[[Weights], float],
    steps: int = 20,
) -> Found:
    """The best of `steps` ratios 0, 1 / steps, ... below 1.

    weights: [O, I] by name, all reading the same inputs. rounded: a weight to what its codes stand for. error: of the
    output around them when `weights` are replaced. As ratio 0 is among the tried, `error` <= `plain_error`.
    """
    best: Found | None = None
    plain_error = math.inf
    for step in range(steps):
        scale_I = activation_scale(mean_input_I, step / steps)
        found = error({name: rounded(weight_OI * scale_I) / scale_I for name, weight_OI in weights.items()})
        if step == 0:
            plain_error = found
            best = Found(0.0, scale_I, found, plain_error)
        elif best is None or found < best.error:
            best = Found(step / steps, scale_I, found, plain_error)
    assert best is not None
    return best


@torch.no_grad()
def output_clip(
    weight_OI: Tensor, hessian_II: Tensor, format: WeightFormat, *, most_shrink: float = 0.5, steps: int = 20
) -> tuple[Tensor, Tensor | None]:
    """Scales [O, G] and zero points of the ranges that, rounded to nearest, change the output least, group by group.

    Tried: each group's range times 1, 1 - 1 / steps, ... down to 1 - `most_shrink`. A group's error is d^T H_gg d for
    its change d and its block of the Hessian: the squared error over all calibration rows, without holding them.
    """
    groups_OGS = grid.grouped(grid.wide(weight_OI), format)
    blocks_GSS = _diagonal_blocks(hessian_II.to(groups_OGS.dtype), groups_OGS.shape[-1])
    lowest_OG, highest_OG = groups_OGS.amin(-1).clamp_max(0), groups_OGS.amax(-1).clamp_min(0)
    best_OG, zeros_OG = grid.scales_of_range(lowest_OG, highest_OG, format)
    least_OG = torch.full_like(best_OG, math.inf)
    for step in range(int(most_shrink * steps) + 1):
        share = 1.0 - step / steps
        scale_OG, zero_OG = grid.scales_of_range(lowest_OG * share, highest_OG * share, format)
        spread = scale_OG[..., None], None if zero_OG is None else zero_OG[..., None]
        change_OGS = grid.values_of(grid.codes_of(groups_OGS, *spread, format), *spread) - groups_OGS
        moved_GOS = change_OGS.transpose(0, 1) @ blocks_GSS
        error_OG = (moved_GOS.transpose(0, 1) * change_OGS).sum(-1)
        better_OG = error_OG < least_OG
        least_OG = torch.where(better_OG, error_OG, least_OG)
        best_OG = torch.where(better_OG, scale_OG, best_OG)
        if zeros_OG is not None and zero_OG is not None:
            zeros_OG = torch.where(better_OG, zero_OG, zeros_OG)
    return best_OG, zeros_OG


def _diagonal_blocks(hessian_II: Tensor, size: int) -> Tensor:
    """[G, S, S]: how the inputs of each group go together; what fills a last group goes with nothing."""
    short = -hessian_II.shape[0] % size
    padded = F.pad(hessian_II, (0, short, 0, short))
    num = padded.shape[0] // size
    return padded.view(num, size, num, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
