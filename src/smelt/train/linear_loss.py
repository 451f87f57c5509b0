"""The head's matrix and a loss in one, a piece of the tokens at a time, so that [N, V] is never held whole.

Every objective goes through here, so one claim about memory holds for all: at most `piece_len` x V logits and their
gradient live at once, whatever N is. Fusing the two is the idea of Liger's fused linear cross-entropy (Hsu et al.
2024): in a piece the loss's gradient is taken at once and only [N, H] and [V, H] are kept for the backward pass.

Shapes: N tokens, n tokens of a piece, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

Piece = Callable[[Tensor, slice], Tensor]
"""(logits [n, V] in float32 or float64, rows of N they belong to) -> the sum, or one value a row [n].

Whatever else it needs (targets, a teacher's hidden states) it holds itself and takes by `rows`; gradients reach the
hidden states and the head only.
"""

# Logits a piece holds by default. On a CPU 4 MiB of float32, near what the caches hold: at 3,000 tokens and V 4,096 on
# one core 0.176 s, against 0.191 s for torch's own loss over all logits at once, 0.202 s for ours in one piece and
# 0.233 s for pieces of 32 tokens. On an accelerator 128 MiB, so that few kernels do much each.
PIECE_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 25}


def chunked_loss(hidden_NH: Tensor, weight_VH: Tensor, piece: Piece, *, piece_len: int | None = None) -> Tensor:
    """Sum of `piece` over all tokens, a scalar; for losses that are a sum over tokens.

    The gradient of each piece is computed with its loss, so that no logits are computed twice or kept.
    piece_len: tokens a piece; None: as many as hold about PIECE_NUMBERS logits.
    """
    pieces = piece_len or _piece_len(weight_VH)
    if torch.is_grad_enabled() and (hidden_NH.requires_grad or weight_VH.requires_grad):
        return _applied(_Sum, hidden_NH, weight_VH, piece, pieces)
    total = hidden_NH.new_zeros((), dtype=_wide(hidden_NH.dtype))
    for rows in _pieces(len(hidden_NH), pieces):
        total = total + piece(_logits(hidden_NH[rows], weight_VH), rows)
    return total


def chunked_values(hidden_NH: Tensor, weight_VH: Tensor, piece: Piece, *, piece_len: int | None = None) -> Tensor:
    """One value a token, [N]; for losses that are not a sum over tokens (log-probabilities of a pair's answers).

    What the values are worth is known in the backward pass only, so it computes the logits of each piece once more.
    """
    pieces = piece_len or _piece_len(weight_VH)
    return _applied(_Values, hidden_NH, weight_VH, piece, pieces)


def _applied(function: Any, *inputs: Any) -> Tensor:
    return cast(Tensor, function.apply(*inputs))


def _piece_len(weight_VH: Tensor) -> int:
    return max(64, PIECE_NUMBERS.get(weight_VH.device.type, 1 << 20) // len(weight_VH))


def _pieces(num_rows: int, piece_len: int) -> Iterator[slice]:
    return (slice(start, min(num_rows, start + piece_len)) for start in range(0, num_rows, piece_len))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Losses are taken in float32, or in float64 where everything is."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(hidden_nH: Tensor, weight_VH: Tensor) -> Tensor:
    logits = F.linear(hidden_nH, weight_VH)
    return logits.to(_wide(logits.dtype))


class _Gradients:
    """Gradients of the pieces so far, in the inputs' own types; the head's is summed in float32 or wider."""

    def __init__(self, ctx: Any, hidden_NH: Tensor, weight_VH: Tensor) -> None:
        self.hidden_NH, self.weight_VH = hidden_NH, weight_VH
        # What a matrix product runs in: the autocast type where that is on.
        self.dtype = F.linear(hidden_NH[:1], weight_VH[:1]).dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        self.hidden_grad = torch.empty_like(hidden_NH) if wants_hidden else None
        wide = _wide(weight_VH.dtype)
        self.weight_grad = torch.zeros_like(weight_VH, dtype=wide) if wants_weight else None

    def add(self, rows: slice, logits_grad_nV: Tensor) -> None:
        """The chain rule through the linear map."""
        grad = logits_grad_nV.to(self.dtype)
        if self.hidden_grad is not None:
            self.hidden_grad[rows] = (grad @ self.weight_VH.to(self.dtype)).to(self.hidden_grad.dtype)
        if self.weight_grad is not None:
            hidden = self.hidden_NH[rows].to(self.dtype)
            if self.dtype == self.weight_grad.dtype:
                self.weight_grad.addmm_(grad.mT, hidden)
            else:
                self.weight_grad += grad.mT @ hidden


def _taken(piece: Piece, logits_nV: Tensor, rows: slice, upstream: Tensor | None) -> tuple[Tensor, Tensor]:
    """What `piece` gives and its gradient with respect to the logits."""
    with torch.enable_grad():
        leaf = logits_nV.detach().requires_grad_()
        value = piece(leaf, rows)
        (grad,) = torch.autograd.grad(value, leaf, upstream)
    return value.detach(), grad


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, piece: Piece, piece_len: int) -> Tensor:
        found = _Gradients(ctx, hidden_NH, weight_VH)
        total = hidden_NH.new_zeros((), dtype=_wide(hidden_NH.dtype))
        for rows in _pieces(len(hidden_NH), piece_len):
            value, grad = _taken(piece, _logits(hidden_NH[rows], weight_VH), rows, None)
            total += value
            found.add(rows, grad)
        ctx.save_for_backward(found.hidden_grad, found.weight_grad)
        ctx.weight_dtype = weight_VH.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        if hidden_grad is not None:
            hidden_grad = hidden_grad * upstream.to(hidden_grad.dtype)
        if weight_grad is not None:
            weight_grad = (weight_grad * upstream).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, piece: Piece, piece_len: int) -> Tensor:
        ctx.save_for_backward(hidden_NH, weight_VH)
        ctx.piece, ctx.piece_len = piece, piece_len
        values = hidden_NH.new_empty(len(hidden_NH), dtype=_wide(hidden_NH.dtype))
        for rows in _pieces(len(hidden_NH), piece_len):
            values[rows] = piece(_logits(hidden_NH[rows], weight_VH), rows)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_NH, weight_VH = ctx.saved_tensors
        found = _Gradients(ctx, hidden_NH, weight_VH)
        for rows in _pieces(len(hidden_NH), ctx.piece_len):
            _, grad = _taken(ctx.piece, _logits(hidden_NH[rows], weight_VH), rows, upstream_N[rows])
            found.add(rows, grad)
        weight_grad = None if found.weight_grad is None else found.weight_grad.to(weight_VH.dtype)
        return found.hidden_grad, weight_grad, None, None
