"""A matrix in few bits as a folder holds it. Shapes: O outputs, I inputs, G groups of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smelt.core.quantization import WeightFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedWeight:
    """codes: int8 [O, I], in the format's range. scales: float32 [O, G], values that their stored type holds.

    zeros: int8 [O, G], None where the format is symmetric. input_scale: of a static activation format, else None;
    its zero point is input_zero.
    """

    format: WeightFormat
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.int8] | None = None
    input_scale: float | None = None
    input_zero: int = 0

    def dequantized(self) -> NDArray[np.float32]:
        """The weights it stands for, [O, I]; the one definition every kernel is held to."""
        width = self.codes.shape[1]
        group = self.format.group_size or width
        codes = self.codes.astype(np.float32)
        if self.zeros is not None:
            codes -= np.repeat(self.zeros.astype(np.float32), group, axis=1)[:, :width]
        scaled: NDArray[np.float32] = codes * np.repeat(self.scales, group, axis=1)[:, :width]
        return scaled


def num_groups(format: WeightFormat, width: int) -> int:
    """G of a row of `width` inputs."""
    return 1 if format.group_size is None else -(-width // format.group_size)
