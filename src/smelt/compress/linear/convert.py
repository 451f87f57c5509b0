"""Which layers become linear, and the model to begin with: the source's matrices, maps that know nothing yet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

import torch

from smelt.core.decoder import DecoderConfig, LinearConfig
from smelt.core.errors import InvalidRequestError
from smelt.model.decoder import Decoder, Layer


def default_layers(config: DecoderConfig, keep: float) -> tuple[int, ...]:
    """Evenly spread over the first three quarters, so many that `keep` of all layers attend by softmax still.

    Only layers that see everything are taken: one that slides holds no more than its window anyway. Raises
    InvalidRequestError where there is none.
    """
    if not 0.0 <= keep < 1.0:
        raise InvalidRequestError(f"keep is {keep}; sought the share of layers left as they are, 0 to below 1")
    end = config.num_layers - math.ceil(config.num_layers / 4)
    free = [i for i in range(end) if config.layers[i].window is None and config.layers[i].linear is None]
    num = min(len(free), math.floor((1.0 - keep) * config.num_layers + 1e-9))
    if num == 0:
        raise InvalidRequestError(
            f"no layer is left to become linear: sought one that sees everything among the first {end} of "
            f"{config.num_layers}, and keep={keep:g} to leave room for it; or name `layers` yourself"
        )
    return tuple(free[(2 * j + 1) * len(free) // (2 * num)] for j in range(num))


def linear_config(config: DecoderConfig, layers: Sequence[int], linear: LinearConfig) -> DecoderConfig:
    """The shape with these layers linear. Raises InvalidRequestError for layers that cannot be."""
    for i in layers:
        if not 0 <= i < config.num_layers:
            raise InvalidRequestError(f"layers: sought 0 to {config.num_layers - 1}, found {i}", param="layers")
        if config.layers[i].linear is not None:
            raise InvalidRequestError(f"layers: layer {i} is linear already", param="layers")
        if (window := config.layers[i].window) is not None:
            raise InvalidRequestError(
                f"layers: layer {i} slides over {window} tokens and never holds more; sought one that sees everything",
                param="layers",
            )
    if not layers or len(set(layers)) != len(layers):
        raise InvalidRequestError(
            f"layers: sought different layers, one at least, found {list(layers)}", param="layers"
        )
    if min(linear.window, linear.feature_dim) < 1:
        raise InvalidRequestError(f"window {linear.window}, feature_dim {linear.feature_dim}: sought 1 or more of each")
    shapes = tuple(dataclasses.replace(x, linear=linear) if i in layers else x for i, x in enumerate(config.layers))
    return dataclasses.replace(config, layers=shapes)


@torch.no_grad()
def linearised(model: Decoder, config: DecoderConfig, seed: int) -> Decoder:
    """A decoder of shape `config` with the model's weights; its new parts have weights to begin with."""
    made = Decoder(config)
    known = dict(model.named_parameters())
    for name, parameter in made.named_parameters():
        if name in known:
            parameter.copy_(known[name])
    generator = torch.Generator().manual_seed(seed)
    for number, layer in enumerate(made.model.layers):
        mixer = cast(Layer, layer).self_attn.mixer
        if mixer is not None and model.config.layers[number].linear is None:
            mixer.init_weights(generator)
    return made
