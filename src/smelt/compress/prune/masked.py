"""The slow twin of slicing: a decoder of the full shape in which what goes is masked.

Norms run over the kept channels only, the inputs of down_proj and o_proj are zero where neurons and heads are gone, and
dropped layers pass the stream on. Its logits are those of the sliced decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smelt.compress.prune.slice import Kept, head_channels, is_stream_norm
from smelt.model.decoder import Decoder, Norm


class _MaskedNorm(nn.Module):
    """RMSNorm over the kept channels; zero elsewhere."""

    def __init__(self, norm: Norm, kept: Tensor, gain: float) -> None:
        super().__init__()
        self.norm, self.kept, self.gain = norm, kept, gain

    def forward(self, x_BTH: Tensor) -> Tensor:
        """[B, T, H] to [B, T, H]."""
        inside = x_BTH * self.kept
        mean = inside.square().sum(-1, keepdim=True) / self.kept.sum()
        return inside * (mean + self.norm.eps).rsqrt() * (self.norm.weight + self.norm.offset) * self.gain


class _Passed(nn.Module):
    """A dropped layer."""

    def forward(self, x_BTH: Tensor, *_: Any) -> Tensor:
        """The stream as it came."""
        return x_BTH


class _MaskedLinear(nn.Module):
    """A matrix some of whose inputs are zero."""

    def __init__(self, linear: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.linear, self.kept = linear, kept

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        found: Tensor = self.linear(x * self.kept)
        return found


def masked(decoder: Decoder, kept: Kept, gains: Mapping[str, float] | None = None) -> Decoder:
    """A masked copy; `gains` as in `slice.sliced`. Layers and channels keep their order, whatever `kept` says."""
    found, config = copy.deepcopy(decoder), decoder.config
    like = decoder.model.norm.weight
    hidden = _mask(kept.hidden, config.hidden_size, like)
    for name, module in list(found.named_modules()):
        if isinstance(module, Norm) and is_stream_norm(f"{name}.weight"):
            _put(found, name, _MaskedNorm(module, hidden, (gains or {}).get(f"{name}.weight", 1.0)))
    for i in range(config.num_layers):
        path = f"model.layers.{i}"
        if i not in kept.layers:
            _put(found, path, _Passed())
            continue
        row = kept.layers.index(i)
        neurons = _mask(kept.neurons[row], config.intermediate_size, like)
        channels = head_channels(kept.heads[row], config.head_dim)
        heads = _mask(channels, config.num_heads * config.head_dim, like)
        for name, mask in ((f"{path}.mlp.down_proj", neurons), (f"{path}.self_attn.o_proj", heads)):
            _put(found, name, _MaskedLinear(found.get_submodule(name), mask))
    return found


def _put(decoder: Decoder, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(decoder.get_submodule(parent), last, module)


def _mask(kept: tuple[int, ...] | list[int], width: int, like: Tensor) -> Tensor:
    mask = torch.zeros(width, dtype=like.dtype, device=like.device)
    mask[list(kept)] = 1.0
    return mask
