"""Which weights to drop, by score: in each row, in a matrix, over all matrices, or n kept of every m inputs.

Counts are exact: of equal scores those that stand first are dropped. Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from smelt.core.errors import InvalidRequestError

Scope = Literal["row", "matrix", "global"]


@dataclass(frozen=True, slots=True)
class Pattern:
    """`kept` of every `of` inputs that stand together in a row are kept: 2:4, 4:8."""

    kept: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "2:4". Raises InvalidRequestError for anything else."""
        parts = text.split(":")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise InvalidRequestError(f"pattern is {text!r:.40}; sought n:m as in 2:4", param="pattern")
        kept, of = map(int, parts)
        if not 0 < kept < of:
            raise InvalidRequestError(f"pattern is {text}; sought fewer kept than there are, and one at least")
        return cls(kept, of)

    @property
    def share(self) -> float:
        """Of the weights that are dropped."""
        return 1 - self.kept / self.of

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


def num_dropped(width: int, share: float) -> int:
    """Of `width` weights."""
    return round(share * width)


def lowest_in_rows(scores_OI: Tensor, count: int) -> Tensor:
    """True at the `count` lowest of each row."""
    order_OI = scores_OI.argsort(dim=1, stable=True)
    return torch.zeros_like(scores_OI, dtype=torch.bool).scatter_(1, order_OI[:, :count], True)


def lowest_in_groups(scores_OI: Tensor, pattern: Pattern) -> Tensor:
    """True at all but the `pattern.kept` highest of every `pattern.of` in a row; these divide the row."""
    groups_gm = scores_OI.reshape(-1, pattern.of)
    return lowest_in_rows(groups_gm, pattern.of - pattern.kept).view(scores_OI.shape)


def lowest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` lowest of all."""
    flat = scores.reshape(-1)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    border = flat.kthvalue(count).values
    drop = flat < border
    ties = torch.nonzero(flat == border)[:, 0]
    drop[ties[: count - int(drop.sum())]] = True
    return drop.view(scores.shape)


def dropped(
    scores: Mapping[str, Tensor], *, share: float = 0.0, scope: Scope = "matrix", pattern: Pattern | None = None
) -> dict[str, Tensor]:
    """By matrix, True where its weight is to go: `share` of all in `scope`, or what `pattern` leaves over."""
    if pattern is not None:
        return {name: lowest_in_groups(scores_OI, pattern) for name, scores_OI in scores.items()}
    if scope == "row":
        return {
            name: lowest_in_rows(scores_OI, num_dropped(scores_OI.shape[1], share))
            for name, scores_OI in scores.items()
        }
    if scope == "matrix":
        return {name: lowest(scores_OI, num_dropped(scores_OI.numel(), share)) for name, scores_OI in scores.items()}
    together = torch.cat([scores_OI.reshape(-1) for scores_OI in scores.values()])
    sizes = [one.numel() for one in scores.values()]
    parts = torch.split(lowest(together, num_dropped(together.numel(), share)), sizes)
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def wanda_scores(weight_OI: Tensor, squares_I: Tensor) -> Tensor:
    """|w| times the norm of its input over the calibration tokens (Sun et al. 2023, arXiv:2306.11695).

    squares_I: the sum of the input's squares, or any multiple of it.
    """
    return weight_OI.abs() * squares_I.sqrt().to(weight_OI.dtype)
