"""A running average of the weights: what a decaying rate gives in part, without the decay (Polyak, Ruppert)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """Exponential moving average of weights, kept beside them.

    decay: what a step keeps of the average; the first steps keep (1 + step) / (10 + step) where that is less, so that
    the random start is forgotten. 0 keeps no average.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights, self.decay = weights, decay
        self.state = {name: weight.clone() for name, weight in weights.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (1, 2, ...)."""
        if self.state:
            kept = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.state.values()), [self.weights[n] for n in self.state], 1 - kept)
