"""The loss, computed over the learned tokens only and in pieces, so that [tokens, V] is never held whole.

Shapes: B rows, T tokens, H hidden width, V vocabulary, N learned tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smelt.model.decoder import Decoder


def _piece(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
    nats_N = F.cross_entropy(F.linear(hidden_NH, weight_VH).float(), targets_N, reduction="none")
    return (nats_N * weights_N).sum()


def cross_entropy_sum(
    model: Decoder, inputs_BT: Tensor, targets_BT: Tensor, weights_BT: Tensor, piece: int = 2048
) -> Tensor:
    """Weighted sum of cross-entropy in nats over targets >= 0; other places never meet the head's matrix."""
    hidden_BTH = model.hidden(inputs_BT)
    learned = targets_BT >= 0
    hidden_NH, targets_N, weights_N = hidden_BTH[learned], targets_BT[learned], weights_BT[learned]
    if len(targets_N) <= piece:
        return _piece(hidden_NH, model.head_weight, targets_N, weights_N)
    total = hidden_NH.new_zeros(())
    split = [torch.split(tensor, piece) for tensor in (hidden_NH, targets_N, weights_N)]
    for rows, targets, weights in zip(*split, strict=True):
        part = checkpoint(_piece, rows, model.head_weight, targets, weights, use_reentrant=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total


@torch.no_grad()
def mean_loss(model: Decoder, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Mean cross-entropy per learned token, in nats, each counting one."""
    total, count = 0.0, 0
    for inputs, targets in batches:
        total += float(cross_entropy_sum(model, inputs, targets, torch.ones(targets.shape)))
        count += int((targets >= 0).sum())
    return total / max(1, count)
