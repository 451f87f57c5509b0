"""Inputs of a matrix as integers: a scale a token as it comes, or one a tensor that calibration chose.

x = (code - zero) * scale. Symmetric codes keep to both sides alike (8 bits: -127 to 127), as our kernels and the
fleet's do; see `grid` for why weights use the last code below 0 too. Shapes: ... tokens, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smelt.compress.quantize.grid import codes_of, storable, values_of, wide
from smelt.core.quantization import ActivationFormat, WeightFormat

_LEAST = 2.0**-126  # the smallest scale: below it float32 loses digits


def integers(format: ActivationFormat) -> WeightFormat:
    """The codes of the format, as the grid knows them."""
    return WeightFormat(bits=format.bits, symmetric=format.symmetric)


def scales_of_tokens(x: Tensor, format: ActivationFormat) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point (int8) of every token, [..., 1]; a token of zeros gets the scale 1."""
    x = wide(x)
    return scales_between(x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0), format)


def scale_of_tensor(lowest: float, highest: float, format: ActivationFormat) -> tuple[float, int]:
    """Scale, such as every stored type holds, and zero point of all that lies in lowest .. highest."""
    ends = torch.tensor([min(lowest, 0.0), max(highest, 0.0)])
    scale = storable(scales_between(ends[0], ends[1], format)[0])
    zero = 0 if format.symmetric else int(_zero(ends[0], scale, format))
    return float(scale), zero


def codes_of_inputs(x: Tensor, scale: Tensor, zero: Tensor | None, format: ActivationFormat) -> Tensor:
    """Codes, int8, for given scales."""
    return codes_of(x, scale, zero, integers(format))


def rounded_inputs(x: Tensor, scale: Tensor, zero: Tensor | None, format: ActivationFormat) -> Tensor:
    """What the codes of x stand for, in the type of x."""
    return values_of(codes_of_inputs(x, scale, zero, format), scale, zero).to(x.dtype)


def scales_between(lowest: Tensor, highest: Tensor, format: ActivationFormat) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point (int8) that spread the codes over lowest <= 0 <= highest, elementwise; no range: 1."""
    if format.symmetric:
        return _positive(torch.maximum(-lowest, highest) / integers(format).highest), None
    scale = _positive((highest - lowest) / ((1 << format.bits) - 1))
    return scale, _zero(lowest, scale, format)


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale.clamp_min(_LEAST))


def _zero(lowest: Tensor, scale: Tensor, format: ActivationFormat) -> Tensor:
    known = integers(format)
    return (known.lowest - torch.round(lowest / scale)).clamp(known.lowest, known.highest).to(torch.int8)
