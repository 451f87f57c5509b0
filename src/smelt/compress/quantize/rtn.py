"""Round to nearest: which tensors of a model a scheme stores in few bits, and their codes without calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smelt.checkpoint.compressed_tensors import EMBEDDING, HEAD, matrix_classes
from smelt.checkpoint.quantized import QuantizedWeight
from smelt.compress.quantize.grid import MINMAX, Clip, quantized
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import Scheme, WeightFormat


def formats(config: DecoderConfig, scheme: Scheme) -> dict[str, WeightFormat]:
    """The format of every tensor that the scheme quantizes, by its name in a folder.

    These are the matrices inside the layers (shared ones under the name they are stored by), and with `scheme.head`
    the embedding and the head; norms, biases, privileges and the residues of shared matrices are few and stay.
    """
    found = {}
    for name in matrix_classes(config):
        if name not in (EMBEDDING, HEAD):
            found[name] = scheme.weights
        elif scheme.head is not None:
            found[name] = scheme.head
    return found


def check_scheme(config: DecoderConfig, scheme: Scheme) -> None:
    """Raises InvalidRequestError, naming the tensor, for a scheme that a folder of this model cannot hold."""
    for name, format in formats(config, scheme).items():
        width = config.tensor_shapes()[name][1]
        if not 2 <= format.bits <= 8:
            raise InvalidRequestError(f"{name}: {format.bits} bits a weight; sought 2 to 8")
        if format.group_size is not None and (format.group_size < 1 or width % format.group_size):
            raise InvalidRequestError(
                f"{name}: groups of {format.group_size} do not divide its {width} inputs; sought a size that does, or "
                "None for one scale a row"
            )
    if scheme.activations is not None and not 2 <= scheme.activations.bits <= 8:
        raise InvalidRequestError(f"{scheme.activations.bits} bits an activation; sought 2 to 8")


_NARROWEST = 32  # of a group: the native core and GGUF store rows in blocks of 32


def fitted(config: DecoderConfig, scheme: Scheme, say: Callable[[str], None] = lambda _: None) -> Scheme:
    """The scheme with groups that divide every row: its own size, a half of it and so on down to 32, else whole rows.

    For a scheme that was chosen before the shape was known: what pruning leaves is seldom a multiple of 64. A change is
    said.
    """
    asked = size = scheme.weights.group_size
    widths = [config.tensor_shapes()[name][1] for name in formats(config, scheme) if name not in (EMBEDDING, HEAD)]
    while size is not None and any(width % size for width in widths):
        size = size // 2 if size % 2 == 0 and size // 2 >= _NARROWEST else None
    if size != asked:
        found = "a scale a row" if size is None else f"groups of {size}"
        say(f"groups of {asked} do not divide rows of {', '.join(map(str, sorted(set(widths))))}: {found} instead")
    return replace(scheme, weights=replace(scheme.weights, group_size=size))


def rounded(
    config: DecoderConfig, tensors: Mapping[str, NDArray[Any]], scheme: Scheme, clip: Clip = MINMAX
) -> dict[str, QuantizedWeight]:
    """Every tensor the scheme quantizes, one in memory at a time.

    Raises InvalidRequestError, naming the tensor's fault, for one the format cannot hold.
    """
    return {
        name: quantized(torch.from_numpy(np.array(tensors[name], dtype=np.float32)), format, clip)
        for name, format in formats(config, scheme).items()
    }


def with_rounded(
    tensors: Mapping[str, NDArray[Any]], quantized: Mapping[str, QuantizedWeight]
) -> dict[str, NDArray[np.float32]]:
    """All tensors in float32, the quantized ones as what their codes stand for: a model to measure."""
    return {name: quantized[name].dequantized() if name in quantized else tensors[name] for name in tensors}
