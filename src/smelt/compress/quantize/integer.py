"""The slow twin: a decoder whose matrices multiply integer codes, summed in int32 as a kernel sums them.

What serves a quantized model (our native core, vLLM) is held to this arithmetic, and `fake` to the same numbers up to
the rounding of floating-point sums. Shapes: O outputs, I inputs, G groups, S inputs of a group; ... tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smelt.checkpoint.quantized import QuantizedWeight
from smelt.compress.quantize.activations import codes_of_inputs, scales_of_tokens
from smelt.compress.quantize.grid import grouped, wide
from smelt.compress.quantize.rtn import with_rounded
from smelt.core.decoder import DecoderConfig
from smelt.core.quantization import ActivationFormat, Scheme
from smelt.model.decoder import Decoder


def integer_linear(x: Tensor, weight: QuantizedWeight, activations: ActivationFormat) -> Tensor:
    """[..., I] to [..., O], in float32 (float64 where x is): sum over I of (qx - zx) * (qw - zw), times sx * sw.

    The sums, a group each, are int32 and exact: 2^16 inputs of 8 by 8 bits fit.
    """
    x = wide(x)
    if weight.input_scale is None:
        scale, zero = scales_of_tokens(x, activations)
    else:
        scale = torch.full((1,), weight.input_scale, dtype=x.dtype)
        zero = torch.full((1,), weight.input_zero, dtype=torch.int8)
    inputs = codes_of_inputs(x, scale, zero, activations).int() - (0 if zero is None else zero.int())
    codes_OI = torch.from_numpy(weight.codes).int()
    rows_nGS = grouped(inputs.reshape(-1, x.shape[-1]), weight.format)
    codes_OGS = grouped(codes_OI, weight.format)
    if weight.zeros is not None:
        # A last group is filled with zeros on the side of the inputs, so that what is subtracted there counts nothing.
        codes_OGS = codes_OGS - torch.from_numpy(weight.zeros).int()[..., None]
    sums_GnO = torch.bmm(rows_nGS.movedim(1, 0), codes_OGS.permute(1, 2, 0))
    scaled_GnO = sums_GnO.to(x.dtype) * torch.from_numpy(weight.scales).to(x.dtype).mT[:, None, :]
    return scaled_GnO.sum(0).reshape(*x.shape[:-1], len(weight.codes)) * scale


class IntegerLinear(nn.Module):
    """A matrix as codes; the bias stays in floating point."""

    def __init__(self, weight: QuantizedWeight, activations: ActivationFormat, bias: Tensor | None) -> None:
        super().__init__()
        self.quantized, self.activations, self.bias = weight, activations, bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        out = integer_linear(x, self.quantized, self.activations).to(x.dtype)
        return out if self.bias is None else out + self.bias


def integer_decoder(
    config: DecoderConfig,
    tensors: Mapping[str, NDArray[Any]],
    quantized: Mapping[str, QuantizedWeight],
    scheme: Scheme,
) -> Decoder:
    """A model of converted weights, on the CPU.

    With integer inputs every matrix inside the layers multiplies codes; what has inputs in floating point (all of a
    scheme without activations, the embedding and the head of any) multiplies the values its codes stand for.
    """
    made = Decoder.from_tensors(config, with_rounded(tensors, quantized))
    if scheme.activations is None:
        return made
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    for path, module in list(made.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in path and (name := names[id(module.weight)]) in quantized:
            parent, _, last = path.rpartition(".")
            new = IntegerLinear(quantized[name], scheme.activations, module.bias)
            setattr(made.get_submodule(parent), last, new)
    return made
