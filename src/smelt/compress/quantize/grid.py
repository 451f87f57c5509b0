"""The one quantizer: rounding, GPTQ, AWQ, training and export all call these functions, so their codes agree.

w = (code - zero) * scale, a scale (and a zero point) per group of inputs within a row, computed in float32 (in
float64 where the weights are). Under given scales a code is one IEEE division and one rounding, half to even: nothing
that a device may do in its own way.

Scales have 8 significant bits and lie between 2^-24 and 65280, so that float16, bfloat16 and float32 all hold them
exactly: readers keep them in the model's type, whichever that is, and GGUF in float16. They are rounded up: then no
weight within the range is off by more than half a step. The coarser scale costs at most 2^-7 of a step.

Shapes: O outputs, I inputs, G groups, S inputs of a group, a last group may have fewer; ... any that broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smelt.checkpoint.quantized import QuantizedWeight
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import WeightFormat

LEAST_SCALE, MOST_SCALE = 2.0**-24, 65280.0
_BLOCK_NUMBERS = 1 << 24  # weights quantized at once: rows do not depend on each other, memory does


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Which part of a group's range the codes cover.

    minmax: all of it. mse: the range times the factor out of 1 .. `smallest`, in `num_steps` steps, with the least
    sum of |error|^norm (Frantar et al. 2022 with norm 2.4). deviations: the range, and no further than `deviations`
    root mean squares of the row from 0.
    """

    kind: Literal["minmax", "mse", "deviations"] = "minmax"
    norm: float = 2.4
    num_steps: int = 80
    smallest: float = 0.2
    deviations: float = 12.85

    def __post_init__(self) -> None:
        if not (self.norm > 0 and self.num_steps >= 1 and 0 < self.smallest <= 1 and self.deviations > 0):
            raise InvalidRequestError(f"{self}: sought a norm, steps and deviations above 0 and a `smallest` up to 1")


MINMAX = Clip()


def scales(weight_OI: Tensor, format: WeightFormat, clip: Clip = MINMAX) -> tuple[Tensor, Tensor | None]:
    """Scales [O, G] in the weight's (at least float32) type, and zero points int8 [O, G] of an asymmetric format.

    Weights must be finite. A group of zeros gets the scale 1.
    """
    groups_OGS = grouped(wide(weight_OI), format)
    # 0 is always in range: it must be exact, and what pads a last group then changes nothing.
    lowest_OG, highest_OG = groups_OGS.amin(-1).clamp_max(0), groups_OGS.amax(-1).clamp_min(0)
    if clip.kind == "deviations":
        # Of the row and around 0, as the grid is; means of rows are next to nothing.
        reach_O1 = clip.deviations * wide(weight_OI).square().mean(-1, keepdim=True).sqrt()
        lowest_OG, highest_OG = lowest_OG.maximum(-reach_O1), highest_OG.minimum(reach_O1)
    if clip.kind == "mse":
        return _searched(groups_OGS, lowest_OG, highest_OG, format, clip)
    return scales_of_range(lowest_OG, highest_OG, format)


def scales_of_range(lowest: Tensor, highest: Tensor, format: WeightFormat) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point that spread the codes over lowest <= 0 <= highest, elementwise.

    Values in between are off by at most half a step, values beyond are clipped.
    """
    num_steps = (1 << format.bits) - 1
    if format.symmetric:
        # Codes reach one further below 0 than above; a step of twice the reach / num_steps splits that at both ends.
        return storable(2 * torch.maximum(-lowest, highest) / num_steps), None
    scale = storable((highest - lowest) / num_steps)
    zero = format.lowest - torch.round(lowest / scale)
    return scale, zero.clamp(format.lowest, format.highest).to(torch.int8)


def storable(scale: Tensor) -> Tensor:
    """The scale rounded up to what every stored type holds, see the module's docstring; 0 becomes 1."""
    whole, dropped = (torch.int64, 45) if scale.dtype == torch.float64 else (torch.int32, 16)
    bits = scale.clamp(LEAST_SCALE, MOST_SCALE).contiguous().view(whole)
    rounded = ((bits + ((1 << dropped) - 1)) & -(1 << dropped)).view(scale.dtype)
    # Below 2^-14 float16 holds multiples of 2^-24 only; from 2^-16 on those have more than 8 bits, above it fewer.
    rounded = torch.where(rounded < 2.0**-16, torch.ceil(rounded * 2.0**24) * 2.0**-24, rounded)
    return torch.where(scale == 0, torch.ones_like(scale), rounded)


def codes_of(weight: Tensor, scale: Tensor, zero: Tensor | None, format: WeightFormat) -> Tensor:
    """Codes, int8, of weights whose scale and zero point are known, elementwise: a column [O], a group, anything."""
    return steps(weight, scale, zero).clamp(format.lowest, format.highest).to(torch.int8)


def steps(weight: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """The codes before they are clipped to the format, as floating-point numbers."""
    rounded = torch.round(wide(weight) / scale)
    return rounded if zero is None else rounded + zero


def values_of(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """What codes stand for, in the scale's type, elementwise; equal to `QuantizedWeight.dequantized` to the bit."""
    floating = codes.to(scale.dtype)
    return (floating if zero is None else floating - zero) * scale


def codes(weight_OI: Tensor, scales_OG: Tensor, zeros_OG: Tensor | None, format: WeightFormat) -> Tensor:
    """Codes int8 [O, I] of a matrix."""
    groups_OGS = grouped(weight_OI, format)
    found = codes_of(groups_OGS, scales_OG[..., None], None if zeros_OG is None else zeros_OG[..., None], format)
    return ungrouped(found, weight_OI.shape[-1])


def dequantized(codes_OI: Tensor, scales_OG: Tensor, zeros_OG: Tensor | None, format: WeightFormat) -> Tensor:
    """The matrix [O, I] that codes stand for, in the scales' type."""
    groups_OGS = grouped(codes_OI, format)
    found = values_of(groups_OGS, scales_OG[..., None], None if zeros_OG is None else zeros_OG[..., None])
    return ungrouped(found, codes_OI.shape[-1])


@torch.no_grad()
def quantized(weight_OI: Tensor, format: WeightFormat, clip: Clip = MINMAX) -> QuantizedWeight:
    """The matrix as a folder holds it, rounded to nearest. Raises InvalidRequestError as `check_weight` does."""
    check_weight(weight_OI, format)
    rows = max(1, _BLOCK_NUMBERS // weight_OI.shape[1])
    blocks = []
    for block_oI in torch.split(weight_OI.detach(), rows):
        found = scales(block_oI, format, clip)
        blocks.append((codes(block_oI, *found, format), *found))
    return as_stored(
        torch.cat([block[0] for block in blocks]),
        torch.cat([block[1] for block in blocks]),
        None if format.symmetric else torch.cat([block[2] for block in blocks if block[2] is not None]),
        format,
    )


def as_stored(codes_OI: Tensor, scales_OG: Tensor, zeros_OG: Tensor | None, format: WeightFormat) -> QuantizedWeight:
    """Codes and scales, however they were found, as numpy arrays."""
    return QuantizedWeight(
        format=format,
        codes=codes_OI.cpu().contiguous().numpy(),
        scales=scales_OG.float().cpu().contiguous().numpy(),
        zeros=None if zeros_OG is None else zeros_OG.cpu().contiguous().numpy(),
    )


def check_weight(weight_OI: Tensor, format: WeightFormat) -> None:
    """Raises InvalidRequestError for widths, numbers or sizes of numbers that the format cannot hold."""
    if not 2 <= format.bits <= 8:
        raise InvalidRequestError(f"{format.bits} bits a weight; sought 2 to 8")
    if format.group_size is not None and format.group_size < 1:
        raise InvalidRequestError(f"groups of {format.group_size} inputs; sought 1 or more, or None for whole rows")
    largest = float(weight_OI.abs().max())
    most = MOST_SCALE * ((1 << format.bits) - 1) / 2
    if not largest <= most:
        raise InvalidRequestError(
            f"a matrix holds a weight of size {largest:g}; sought finite ones up to {most:g}, which "
            f"{format.bits} bits and a float16 scale reach"
        )


def grouped(matrix_OI: Tensor, format: WeightFormat) -> Tensor:
    """[O, G, S]: a view where groups are whole, else a copy with zeros at the end of each row."""
    width = matrix_OI.shape[-1]
    group = width if format.group_size is None else min(format.group_size, width)
    if short := -width % group:
        matrix_OI = F.pad(matrix_OI, (0, short))
    return matrix_OI.reshape(matrix_OI.shape[0], -1, group)


def ungrouped(groups_OGS: Tensor, width: int) -> Tensor:
    """[O, I] again, without what filled the last group."""
    return groups_OGS.flatten(-2)[..., :width]


def wide(x: Tensor) -> Tensor:
    """In float32, or in float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


def _searched(
    groups_OGS: Tensor, lowest_OG: Tensor, highest_OG: Tensor, format: WeightFormat, clip: Clip
) -> tuple[Tensor, Tensor | None]:
    """The best of the ranges that `clip` tries, group by group; of equal ones the widest."""
    best, zeros = scales_of_range(lowest_OG, highest_OG, format)
    least_OG = torch.full_like(best, float("inf"))
    for i in range(clip.num_steps + 1):
        factor = 1 - (1 - clip.smallest) * i / clip.num_steps
        scale, zero = scales_of_range(lowest_OG * factor, highest_OG * factor, format)
        spread = scale[..., None], None if zero is None else zero[..., None]
        rounded_OGS = values_of(codes_of(groups_OGS, *spread, format), *spread)
        error_OG = (groups_OGS - rounded_OGS).abs_().pow_(clip.norm).sum(-1)
        better_OG = error_OG < least_OG
        least_OG = torch.where(better_OG, error_OG, least_OG)
        best = torch.where(better_OG, scale, best)
        if zero is not None and zeros is not None:
            zeros = torch.where(better_OG, zero, zeros)
    return best, zeros
