"""Attention transfer (Zhang et al. 2024, arXiv:2410.10254): linear attention learns what softmax attention says.

Every linear layer reads what its counterpart in the source reads, and what it makes of that is drawn towards what the
counterpart makes; so no layer learns from the errors of those below. Only what linear attention has beside q, k, v and
o is trained. Shapes: B rows, T tokens, H hidden width, N tokens without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from smelt.data.batches import Batch
from smelt.model.decoder import Decoder, Layer
from smelt.train.objectives import LossSum, batch_entered, kept_places, on_device


class AttentionTransfer:
    """The squared error of each linear layer's output over the mean square of what it is to be, summed over layers.

    Relative, as layers differ in size by orders of magnitude. teacher: the source, never trained.
    """

    def __init__(self, teacher: Decoder, layers: Sequence[int]) -> None:
        self.teacher, self.layers = teacher.eval().requires_grad_(False), tuple(layers)

    @property
    def name(self) -> str:
        """Its kind, and the layers."""
        return f"attention-transfer({','.join(map(str, self.layers))})"

    def __call__(self, model: Decoder, batch: Batch, device: torch.device) -> LossSum:
        """Summed over the batch's tokens."""
        total = torch.zeros((), device=device)
        num_tokens = len(kept_places(batch))
        for _, made_NH, sought_NH in compared(model, self.teacher, batch, self.layers, device):
            error = (made_NH - sought_NH).square().mean(-1).sum()
            total = total + error / sought_NH.square().mean().clamp_min(1e-12)
        return LossSum(total, float(num_tokens))


def compared(
    model: Decoder, teacher: Decoder, batch: Batch, layers: Sequence[int], device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Of each layer its number, what the model's attention makes of the teacher's hidden states, and what it should.

    [N, H] each; the first with gradients of the model where they are on.
    """
    teacher.to(device)
    places = on_device(kept_places(batch), device)
    with torch.no_grad():
        x_BTH, theirs = batch_entered(teacher, batch, device)
        _, ours = batch_entered(model, batch, device)
    for i in range(max(layers) + 1):
        layer, own = (cast(Layer, each.model.layers[i]) for each in (teacher, model))
        if i in layers:
            with torch.no_grad():
                entered = x_BTH if layer.entry is None else layer.entry(x_BTH)
                read_BTH = layer.input_layernorm(entered)
                sought = layer.self_attn(read_BTH, theirs[i], None)
            made = own.self_attn(read_BTH, ours[i], None)
            yield i, made.flatten(0, 1)[places], sought.flatten(0, 1)[places]
        with torch.no_grad():
            x_BTH = layer(x_BTH, theirs[i])


@torch.no_grad()
def transfer_errors(
    model: Decoder, teacher: Decoder, batches: Sequence[Batch], layers: Sequence[int], device: torch.device
) -> dict[int, dict[str, float]]:
    """By layer: mse, and relative, the same over the mean square of what was sought."""
    errors = dict.fromkeys(layers, 0.0)
    sizes = dict.fromkeys(layers, 0.0)
    numbers = 0
    for batch in batches:
        for i, made_NH, sought_NH in compared(model, teacher, batch, layers, device):
            errors[i] += float((made_NH - sought_NH).double().square().sum())
            sizes[i] += float(sought_NH.double().square().sum())
        numbers += len(kept_places(batch)) * model.config.hidden_size
    return {i: {"mse": errors[i] / max(1, numbers), "relative": errors[i] / max(1e-300, sizes[i])} for i in layers}
