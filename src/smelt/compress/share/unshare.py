"""The plain model that a sharing one stands for: a matrix for every use, so that any reader computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from smelt.compress.share.tensors import Arrays, Made, reading
from smelt.core.decoder import MATRICES, DecoderConfig
from smelt.core.errors import UnsupportedError


def unshared(config: DecoderConfig, tensors: Arrays) -> tuple[DecoderConfig, Arrays]:
    """The configuration without sharing and residues, and its tensors, made when read: home + expand @ reduce.

    The logits are the same but for the rounding of that sum. Raises UnsupportedError for entry vectors, which have no
    place in a plain layer.
    """
    if any(layer.entry_bias for layer in config.layers):
        raise UnsupportedError("a vector in front of a layer (entry_bias) has no place in a plain model; train without")
    layers = tuple(dataclasses.replace(layer, weights=None, residue_rank=0) for layer in config.layers)
    plain = dataclasses.replace(config, layers=layers)
    makers = {name: reading(tensors, name) for name in plain.tensor_shapes()}
    for i, layer in enumerate(config.layers):
        for stem in MATRICES:
            home = f"model.layers.{config.home(i)}.{stem}_proj.weight"
            path = f"model.layers.{i}.{stem}"
            makers[path + "_proj.weight"] = (
                _summed(tensors, home, path + "_residue") if layer.residue_rank else reading(tensors, home)
            )
    return plain, Made(makers)


def _summed(tensors: Arrays, home: str, residue: str) -> Callable[[], NDArray[np.float32]]:
    def summed() -> NDArray[np.float32]:
        product = tensors[residue + ".expand"].astype(np.float64) @ tensors[residue + ".reduce"].astype(np.float64)
        found: NDArray[np.float32] = (tensors[home] + product).astype(np.float32)
        return found

    return summed
