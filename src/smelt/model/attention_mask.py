"""Which keys a query may see. Shapes: T queries, L keys."""

from __future__ import annotations

import torch
from torch import Tensor


def additive_mask(query_places: Tensor, key_places: Tensor, *, window: int | None, dtype: torch.dtype) -> Tensor:
    """Zero where key k is visible to query q, minus infinity elsewhere; [T, L].

    A place is an index into the sequence as stored, not a rotary position: k <= q, and k > q - window where
    there is a window.
    """
    distance = query_places[:, None] - key_places[None, :]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
