"""Where a layer's numbers can be scaled without changing what it computes.

What makes the inputs of some matrices, a norm or the matrix before, is divided channel by channel; the matrices are
multiplied. Rounding is not blind to that, which is what SmoothQuant and AWQ live on. Shapes: I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from smelt.core.decoder import DecoderConfig
from smelt.model.decoder import Norm


@dataclass(frozen=True, slots=True)
class Fold:
    """maker: module of a layer whose outputs, channel by channel, are the inputs of `users` or a factor of them.

    block: the part of the layer around the users, at whose output their rounding errors meet.
    """

    maker: str
    users: tuple[str, ...]
    block: Literal["self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj"]

    @property
    def behind_norm(self) -> bool:
        """Whether the maker is a norm, which carries any scale: of a matrix, a rounded row scale does."""
        return self.maker.endswith("layernorm")


def folds(config: DecoderConfig) -> tuple[Fold, ...]:
    """The places of one layer, in the order in which data passes them.

    Values meet the output matrix channel by channel only where every head has its own: under grouped queries several
    inputs of the one share an output of the other, and the pair is left out.
    """
    before_mlp = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    queries, keys, values = (f"self_attn.{name}_proj" for name in "qkv")
    found = [Fold("input_layernorm", (queries, keys, values), "self_attn")]
    if config.num_kv_heads == config.num_heads:
        found.append(Fold(values, ("self_attn.o_proj",), "self_attn.o_proj"))
    found.append(Fold(before_mlp, ("mlp.gate_proj", "mlp.up_proj"), "mlp"))
    found.append(Fold("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj"))
    return tuple(found)


@torch.no_grad()
def scale_inputs(layer: nn.Module, fold: Fold, scale_I: Tensor) -> None:
    """Multiply the columns of the users' weights by `scale_I` > 0 and divide the maker's outputs by it, in place.

    A norm's gain is (offset + weight), so that is what is divided; a maker's bias is an output like the rest.
    """
    maker = layer.get_submodule(fold.maker)
    if isinstance(maker, Norm):
        maker.weight.copy_((maker.offset + maker.weight) / scale_I - maker.offset)
    elif isinstance(maker, nn.Linear):
        maker.weight.div_(scale_I[:, None])
        if maker.bias is not None:
            maker.bias.div_(scale_I)
    else:
        raise TypeError(f"{fold.maker}: sought a norm or a linear layer, found {type(maker).__name__}")
    for name in fold.users:
        weight = layer.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.mul_(scale_I)
