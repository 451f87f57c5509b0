"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the halves layout of Hugging Face folders.

Shapes: B batch, T time, N heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from smelt.core.decoder import RopeConfig


class Rope(nn.Module):
    """cos and sin for positions. Angles are float32 whatever the model's dtype: position 100,000 needs it."""

    inv_freq: Tensor

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        super().__init__()
        inv_freq = torch.tensor(config.inv_freq(head_dim), dtype=torch.float32)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.factor = config.cos_sin_factor()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves with the model, but keeps its dtype: bfloat16 frequencies would be wrong from position 300 on."""
        exact = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: [T] or [B, T]. Returns cos and sin, [1 or B, 1, T, D/2], to broadcast over heads."""
        angles = positions.to(torch.float32)[..., None] * self.inv_freq
        shape = (-1, 1, *angles.shape[-2:])
        return (angles.cos() * self.factor).view(shape), (angles.sin() * self.factor).view(shape)


def widened(x: Tensor) -> Tensor:
    """Half precision as float32, anything wider as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def rotate(x_BNTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of each head by their angle; at least float32 inside, returned in x's dtype."""
    left, right = widened(x_BNTD).chunk(2, dim=-1)
    turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    return turned.to(x_BNTD.dtype)
