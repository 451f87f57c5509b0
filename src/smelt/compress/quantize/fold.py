"""Where a layer's numbers can be scaled without changing what it computes.

What makes the inputs of some matrices, a norm or the matrix before, is divided channel by channel; the matrices are
multiplied. Rounding is not blind to that, which is what SmoothQuant and AWQ live on. Shapes: I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smelt.core.decoder import DecoderConfig
from smelt.model.decoder import Norm


@dataclass(frozen=True, slots=True)
class Fold:
    """maker: module of a layer whose outputs, channel by channel, are the inputs of `users` or a factor of them."""

    maker: str
    users: tuple[str, ...]

    @property
    def behind_norm(self) -> bool:
        """Whether the maker is a norm, else it is a matrix that is rounded itself."""
        return self.maker.endswith("layernorm")


def folds(config: DecoderConfig, layer: int) -> tuple[Fold, ...]:
    """The places of a layer, in the order in which data passes them.

    Values meet the output matrix channel by channel only where every head has its own: under grouped queries several
    inputs of the one share an output of the other, and the pair is left out. A layer that shares its matrices or has
    residues beside them has none: its norms are not the only ones in front of them, its matrices not the only readers.
    The gates of a gated delta layer read its first norm too, so that one is left as it is.
    """
    shape = config.layers[layer]
    shared = shape.weights is not None or any(other.weights == layer for other in config.layers)
    if shared or shape.residue_rank:
        return ()
    before_mlp = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    queries, keys, values = (f"self_attn.{name}_proj" for name in "qkv")
    gated = shape.linear is not None and shape.linear.kind == "gated delta"
    found = [] if gated else [Fold("input_layernorm", (queries, keys, values))]
    if config.num_kv_heads == config.num_heads:
        found.append(Fold(values, ("self_attn.o_proj",)))
    found.append(Fold(before_mlp, ("mlp.gate_proj", "mlp.up_proj")))
    found.append(Fold("mlp.up_proj", ("mlp.down_proj",)))
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
