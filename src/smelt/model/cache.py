"""Keys and values of the tokens so far, for decoding token by token."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from smelt.core.decoder import DecoderConfig


class Cache(Protocol):
    """Where attention keeps what it has seen, `length` tokens so far.

    A pass reserves, appends per layer, advances. A linear layer takes its state and keeps the new one instead.
    """

    length: int

    def reserve(self, num_tokens: int) -> None:
        """Make sure that `num_tokens` more fit, or raise."""
        ...

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; returns those of all tokens in order, [B, K, L, D] each."""
        ...

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """What a linear layer kept of the tokens so far; None before the first."""
        ...

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """In place of what the layer kept before."""
        ...

    def advance(self, num_tokens: int) -> None:
        """All layers stored `num_tokens`."""
        ...


class KVCache:
    """Room for `capacity` tokens of `batch` sequences of equal length, all layers; `length` are filled.

    Sliding layers keep everything too: this is the plain twin, made to be right, not small. Linear layers keep their
    state alone, which does not grow.
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
        self._rows = softmax_rows(config)
        shape = (len(self._rows), 2, batch, config.num_kv_heads, self.capacity, config.head_dim)
        self._data = torch.zeros(shape, device=device, dtype=dtype)
        self._states: dict[int, tuple[Tensor, ...]] = {}

    def reserve(self, num_tokens: int) -> None:
        """Check that `num_tokens` more fit. Raises ValueError when they do not."""
        if self.length + num_tokens > self.capacity:
            raise ValueError(f"the cache holds {self.length} of {self.capacity} tokens, {num_tokens} more do not fit")

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values behind the filled ones; returns all of them."""
        end = self.length + k_BKTD.shape[2]
        row = self._data[self._rows[layer]]
        keys, values = row[0], row[1]  # two views; unpacking would make one of several, which autograd locks
        keys[:, :, self.length : end] = k_BKTD
        values[:, :, self.length : end] = v_BKTD
        return keys[:, :, :end], values[:, :, :end]

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """A linear layer's; None before its first token."""
        return self._states.get(layer)

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """A copy, so that no larger tensor stays alive behind a part of it."""
        self._states[layer] = tuple(part.clone() for part in state)

    @property
    def state_bytes(self) -> int:
        """Of what linear layers keep now."""
        return sum(part.nbytes for state in self._states.values() for part in state)

    def advance(self, num_tokens: int) -> None:
        """All layers stored `num_tokens`."""
        self.length += num_tokens


def softmax_rows(config: DecoderConfig) -> dict[int, int]:
    """Layer to its row in a store of keys and values: linear layers have none."""
    return {layer: row for row, layer in enumerate(i for i, x in enumerate(config.layers) if x.linear is None)}
