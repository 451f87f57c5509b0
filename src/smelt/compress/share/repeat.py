"""Layers run more than once: a deeper model of the same parameters, to be trained on from there.

Loops that are switched on at 35 to 50 per cent of a training end as good as loops from the start, and the first part
costs less. A repeated model computes something else than its source: it wants training behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from smelt.compress.share.tensors import Arrays, Made, reading, zeros
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError


def repeated(
    config: DecoderConfig, tensors: Arrays, order: Sequence[int], *, entry_bias: bool = False
) -> tuple[DecoderConfig, Arrays]:
    """The model that runs the layers of `config` in `order`, e.g. (0, 1, 2, 1, 2, 3).

    A layer that comes again computes with the matrices of its first run, and begins with copies of its norms and biases
    as its own. entry_bias: it also has a vector in front, of zeros. Raises InvalidRequestError for an order that names
    layers that are not there, or leaves one out, and for a model that shares already.
    """
    if sorted(set(order)) != list(range(config.num_layers)):
        raise InvalidRequestError(
            f"order {tuple(order)}: sought each of layers 0 to {config.num_layers - 1}, all of them"
        )
    if any(layer.weights is not None for layer in config.layers):
        raise InvalidRequestError("the model's layers share their matrices already; sought one that stores all of them")
    homes = [order.index(layer) for layer in order]
    layers = tuple(
        dataclasses.replace(
            config.layers[layer], weights=None if home == i else home, entry_bias=entry_bias and home != i
        )
        for i, (layer, home) in enumerate(zip(order, homes, strict=True))
    )
    deeper = dataclasses.replace(config, layers=layers)
    makers = {}
    for name, shape in deeper.tensor_shapes().items():
        if name.startswith("model.layers."):
            number, _, rest = name.removeprefix("model.layers.").partition(".")
            source = f"model.layers.{order[int(number)]}.{rest}"
            if rest == "entry.bias" and source not in tensors:
                makers[name] = zeros(shape)
                continue
        else:
            source = name
        makers[name] = reading(tensors, source)
    return deeper, Made(makers)
