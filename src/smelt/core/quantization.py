"""How numbers are stored in few bits, as plain values: the word that `checkpoint`, `native` and `compress` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Observer = Literal["minmax", "average", "percentile", "mse", "entropy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFormat:
    """Integers of `bits` bits (2..8) and their scales: w = (code - zero) * scale.

    group_size: inputs that share a scale, within an output row; None: one scale a row (per channel).
    symmetric: no zero points. Codes lie in [-2^(bits-1), 2^(bits-1) - 1] either way.
    """

    bits: int = 8
    group_size: int | None = None
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1

    def bits_per_weight(self, width: int, *, scale_bits: int = 16) -> float:
        """Bits a weight takes with its share of the scale (and the zero point), in rows of `width` inputs."""
        shared = self.group_size or width
        return self.bits + (scale_bits + (0 if self.symmetric else self.bits)) / shared


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationFormat:
    """Inputs of a matrix in `bits` bits: dynamic, one scale a token as it comes, or static, one scale a tensor.

    A static scale is what `observer` made of a calibration set; percentile: what of it the observer of that name keeps,
    in percent, the rest cut in halves from both ends.
    """

    bits: int = 8
    dynamic: bool = True
    symmetric: bool = True
    observer: Observer = "minmax"
    percentile: float = 99.99


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """What is stored how: the matrices inside the layers, and apart from them the embedding and the head.

    head None: they stay as they are. activations None: they stay in floating point.
    """

    weights: WeightFormat = WeightFormat()
    head: WeightFormat | None = None
    activations: ActivationFormat | None = None
