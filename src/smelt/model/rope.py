"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the halves layout of Hugging Face folders.

Shapes: B batch, T time, N heads, D head width.
"""

from __future__ import annotations

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

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: [T] or [B, T]. Returns cos and sin, [1 or B, 1, T, D/2], to broadcast over heads."""
        angles = positions.to(torch.float32)[..., None] * self.inv_freq
        shape = (-1, 1, *angles.shape[-2:])
        return (angles.cos() * self.factor).view(shape), (angles.sin() * self.factor).view(shape)


def rotate(x_BNTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of each head by their angle; computed in float32, returned in x's dtype."""
    left, right = x_BNTD.float().chunk(2, dim=-1)
    turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    return turned.to(x_BNTD.dtype)
