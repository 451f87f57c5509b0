"""A model as a quantized folder computes it, in floating point: what is measured in place of what serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from torch import nn

from smelt.checkpoint.quantized import QuantizedWeight
from smelt.compress.quantize import rtn
from smelt.compress.quantize.fake import fake_inputs
from smelt.core.decoder import DecoderConfig
from smelt.core.quantization import Scheme
from smelt.model.decoder import Decoder


def in_few_bits(
    config: DecoderConfig,
    tensors: Mapping[str, NDArray[Any]],
    quantized: Mapping[str, QuantizedWeight],
    scheme: Scheme,
) -> Decoder:
    """A model of what codes stand for, inputs inside the layers rounded as the scheme says; in floating point.

    The same numbers as `integer_decoder` up to the rounding of sums, at the speed of floating-point products.
    """
    made = Decoder.from_tensors(config, rtn.with_rounded(tensors, quantized)).eval()
    form = scheme.activations
    if form is None:
        return made
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    for module in made.modules():
        if isinstance(module, nn.Linear) and ".layers." in (name := names[id(module.weight)]) and name in quantized:
            weight = quantized[name]
            static = None if weight.input_scale is None else (weight.input_scale, weight.input_zero)

            def enter(_: nn.Module, given: tuple[Any, ...], static: tuple[float, int] | None = static) -> Any:
                return (fake_inputs(given[0], form, static),)

            module.register_forward_pre_hook(enter)
    return made
