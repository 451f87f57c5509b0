"""The stage "retrain-sparse": distillation under a mask that grows on the way, or stands from the start.

One shot stops at about half of the weights; with retraining 70 to 84 % went without loss (Agarwalla et al. 2024,
arXiv:2405.03594). The share grows as s (1 - (1 - t/T)^3): fast while there is much to drop, slowly towards the end (Zhu
and Gupta 2017, arXiv:1710.01878).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress.distil import Distil
from smelt.compress.sparse.masks import Pattern, Scope, dropped
from smelt.compress.sparse.stage import SCOPES, check, chosen_weights, facts_of
from smelt.compress.stage import Work
from smelt.core.decoder import MATRICES
from smelt.core.errors import InvalidRequestError
from smelt.model.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The share of zeros after each step: from 0 to `final` over the first `length` steps, raised every `every`."""

    final: float
    length: int
    every: int

    def at(self, step: int) -> float:
        """After `step` steps."""
        if step >= self.length:
            return self.final
        return self.final * (1 - (1 - step // self.every * self.every / self.length) ** 3)


class Mask:
    """Holds weights at zero, more of them from time to time: `train.loop.Run.before_step`.

    The mask is the zeros of the weights themselves, so a checkpoint holds it, and a resumed run goes on with the same
    one. growth None: what was zero stays zero, no more.
    """

    def __init__(
        self,
        weights: dict[str, torch.nn.Parameter],
        *,
        growth: Growth | None = None,
        pattern: Pattern | None = None,
        scope: Scope = "matrix",
    ) -> None:
        self._weights, self._growth, self._pattern, self._scope = weights, growth, pattern, scope
        self._zeros: dict[str, Tensor] = {}
        self._share = -1.0

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Put the weights right after `step` steps."""
        for name, zeros_OI in self._zeros.items():
            self._weights[name].masked_fill_(zeros_OI, 0.0)
        share = 0.0 if self._growth is None else self._growth.at(step)
        if share != self._share:
            self._drop(share)
            self._share = share
        self._zeros = {name: weight_OI == 0 for name, weight_OI in self._weights.items()}

    def _drop(self, share: float) -> None:
        """The smallest, which those already dropped are among."""
        scores = {name: weight_OI.abs() for name, weight_OI in self._weights.items()}
        for name, drop_OI in dropped(scores, share=share, scope=self._scope, pattern=self._pattern).items():
            self._weights[name].masked_fill_(drop_OI, 0.0)


@dataclass(frozen=True, kw_only=True)
class RetrainSparse(Distil):
    """`Distil` under a mask.

    share: of zeros in the end, by size, counted in `scope`; reached after `growing` of the steps and raised every
    `every` until then. pattern: "2:4", at once. Neither: what is zero in the source stays zero (after "sparsify").
    """

    share: float | None = None
    pattern: str | None = None
    scope: Scope = "matrix"
    matrices: tuple[str, ...] = MATRICES
    growing: float = 0.6
    every: int = 10
    name: ClassVar[str] = "retrain-sparse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share is not None and self.pattern is not None:
            raise InvalidRequestError(f"{self.name}: sought a share or a pattern, found both")
        if self.scope not in SCOPES:
            raise InvalidRequestError(f"{self.name}: scope is {self.scope!r}; sought {', '.join(SCOPES)}")
        if not 0.0 < self.growing <= 1.0 or self.every < 1:
            raise InvalidRequestError(f"{self.name}: sought growing above 0 and up to 1, and every of 1 at least")

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """Facts: those of `Distil`, and what the zeros come to."""
        check(source, self.share or 0.0, self._pattern, self.matrices)
        facts = super().run(source, work)
        made = open_checkpoint(work.out)
        found = facts_of(source, Decoder.from_tensors(made.config, made.tensors), self.matrices, self._pattern)
        drops = self.share is not None or self.pattern is not None
        return {**facts, **found, "claims": ["bytes", "speed"] if drops else ["quality"]}

    @property
    def _pattern(self) -> Pattern | None:
        return None if self.pattern is None else Pattern.parse(self.pattern)

    def _before_step(self, student: Decoder, steps: int) -> Callable[[int], None]:
        growth = None
        if self.share is not None:
            growth = Growth(final=self.share, length=max(1, round(self.growing * steps)), every=self.every)
        weights = chosen_weights(student, self.matrices)
        return Mask(weights, growth=growth, pattern=self._pattern, scope=self.scope)
