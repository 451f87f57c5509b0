"""Keys and values of the tokens so far, for decoding token by token."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from smelt.core.decoder import DecoderConfig


class Cache(Protocol):
    """Where attention keeps what it has seen, `length` tokens so far. A pass reserves, appends per layer, advances."""

    length: int

    def reserve(self, num_tokens: int) -> None:
        """Make sure that `num_tokens` more fit, or raise."""
        ...

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; returns those of all tokens in order, [B, K, L, D] each."""
        ...

    def advance(self, num_tokens: int) -> None:
        """All layers stored `num_tokens`."""
        ...


class KVCache:
    """Room for `capacity` tokens of `batch` sequences of equal length, all layers; `length` are filled.

    Sliding layers keep everything too: this is the plain twin, made to be right, not small.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        batch: int = 1,
        capacity: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.capacity = config.context_len if capacity is None else capacity
        self.length = 0
        shape = (config.num_layers, 2, batch, config.num_kv_heads, self.capacity, config.head_dim)
        self._data = torch.zeros(shape, device=device, dtype=dtype)

    def reserve(self, num_tokens: int) -> None:
        """Check that `num_tokens` more fit. Raises ValueError when they do not."""
        if self.length + num_tokens > self.capacity:
            raise ValueError(f"the cache holds {self.length} of {self.capacity} tokens, {num_tokens} more do not fit")

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values behind the filled ones; returns all of them."""
        end = self.length + k_BKTD.shape[2]
        self._data[layer, 0, :, :, self.length : end] = k_BKTD
        self._data[layer, 1, :, :, self.length : end] = v_BKTD
        return self._data[layer, 0, :, :, :end], self._data[layer, 1, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """All layers stored `num_tokens`."""
        self.length += num_tokens
