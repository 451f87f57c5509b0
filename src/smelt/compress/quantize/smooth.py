"""SmoothQuant: part of the width of the inputs' outliers is handed to the weights, where it costs less.

Int8 activations take one scale a token: a channel a hundred times as large as the others leaves these a hundredth of
the codes. Weights have no such channels, so both sides are brought nearer to each other
(Xiao et al. 2022, arXiv:2211.10438). Shapes: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SMALLEST = 1e-5  # of a channel's largest input or weight, and of a scale: nothing is divided by less


def smoothing_scale(largest_input_I: Tensor, weights_OI: Sequence[Tensor], *, strength: float = 0.5) -> Tensor:
    """max|X_j|^a / max|W_j|^(1 - a) for every channel j, [I]: weights are multiplied by it, inputs divided.

    weights_OI: of all matrices that read these inputs. strength a: 0.5 to 0.8; more leaves the inputs flatter.
    Channels that were never used, or that no weight reads, stay as they are.
    """
    largest_weight_I = torch.stack([weight.abs().amax(0) for weight in weights_OI]).amax(0)
    used = (largest_input_I > 0) & (largest_weight_I > 0)
    inputs_I, matrices_I = largest_input_I.clamp(min=_SMALLEST), largest_weight_I.clamp(min=_SMALLEST)
    scale_I = (inputs_I**strength / matrices_I ** (1.0 - strength)).clamp(min=_SMALLEST)
    return torch.where(used, scale_I, torch.ones_like(scale_I))
