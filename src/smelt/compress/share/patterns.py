"""Which layers share, as values over integers: of every group of layers one set of matrices is stored.

Shapes: L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from smelt.core.decoder import LayerConfig
from smelt.core.errors import InvalidRequestError

Groups = tuple[tuple[int, ...], ...]
Measure = Literal["weights", "cka"]


@dataclass(frozen=True, kw_only=True)
class Adjacent:
    """Every `times` neighbours share (MobileLLM-LS, arXiv:2402.14905); `first` and `last` layers at the ends do not."""

    times: int = 2
    first: int = 0
    last: int = 0

    def groups(self, num_layers: int) -> Groups:
        """Of a model as deep as it stays. Raises InvalidRequestError where the layers do not divide."""
        blocks = _blocks(self, num_layers)
        return tuple(tuple(range(at, at + self.times)) for at in range(self.first, self.first + blocks, self.times))

    def order(self, num_layers: int) -> tuple[int, ...]:
        """Of a model that becomes deeper: its layers in the order in which they run."""
        middle = range(self.first, num_layers - _check(self, num_layers).last)
        return (*range(self.first), *(i for i in middle for _ in range(self.times)), *range(middle.stop, num_layers))


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The middle is run `times` times over, every pass with the same matrices; `first` and `last` layers are not."""

    times: int = 2
    first: int = 1
    last: int = 1

    def groups(self, num_layers: int) -> Groups:
        """Of a model as deep as it stays. Raises InvalidRequestError where the layers do not divide."""
        block = _blocks(self, num_layers) // self.times
        return tuple(
            tuple(self.first + at + turn * block for turn in range(self.times)) for at in range(block) if self.times > 1
        )

    def order(self, num_layers: int) -> tuple[int, ...]:
        """Of a model that becomes deeper: its layers in the order in which they run."""
        middle = range(self.first, num_layers - _check(self, num_layers).last)
        return (*range(self.first), *(i for _ in range(self.times) for i in middle), *range(middle.stop, num_layers))


@dataclass(frozen=True, kw_only=True)
class Similar:
    """Neighbours that are most alike share, so that `num_stored` sets of matrices are left.

    measure: "weights", the cosine of their matrices, or "cka", of what they add to the residual stream on the
    calibration set (see `compress.share.similarity`).
    """

    num_stored: int
    measure: Measure = "weights"
    first: int = 0
    last: int = 0


@dataclass(frozen=True, kw_only=True)
class Given:
    """These groups of layers share; layers in none keep their own."""

    together: Groups

    def groups(self, num_layers: int) -> Groups:
        """The same, in order. Raises InvalidRequestError for layers that are not there, or are in two groups."""
        found = tuple(sorted(tuple(sorted(group)) for group in self.together if group))
        members = [layer for group in found for layer in group]
        if len(members) != len(set(members)) or not all(0 <= layer < num_layers for layer in members):
            raise InvalidRequestError(
                f"groups {self.together}: sought each of layers 0 to {num_layers - 1} once at most"
            )
        return found


Pattern = Adjacent | Loop | Similar | Given


def most_alike(similarity_LL: NDArray[np.floating], pattern: Similar) -> Groups:
    """The groups of neighbours that lose least: an exact search over all cuts of the line of layers.

    A group of n loses the sum over its pairs of (1 - similarity) / n: for vectors of one length that is half the sum
    of squared distances from their mean. Raises InvalidRequestError for a number that cannot be reached.
    """
    num_layers = len(similarity_LL)
    middle = num_layers - pattern.first - pattern.last
    wanted = pattern.num_stored - pattern.first - pattern.last
    if min(pattern.first, pattern.last) < 0 or not 1 <= wanted <= middle:
        raise InvalidRequestError(
            f"num_stored is {pattern.num_stored}; sought {pattern.first + pattern.last + 1} to {num_layers}, as "
            f"{pattern.first} first and {pattern.last} last of {num_layers} layers keep their own"
        )
    loss = (
        1.0
        - np.asarray(similarity_LL, dtype=np.float64)[pattern.first : num_layers - pattern.last][
            :, pattern.first : num_layers - pattern.last
        ]
    )

    def lost(start: int, end: int) -> float:
        return float(np.triu(loss[start:end, start:end], 1).sum()) / (end - start)

    # best[end]: the least loss of layers 0 .. end-1 in the groups so far, and where the last of them begins.
    best = [(lost(0, end), (0,)) if end else (0.0, ()) for end in range(middle + 1)]
    for count in range(2, wanted + 1):
        best = [
            min(
                ((best[cut][0] + lost(cut, end), (*best[cut][1], cut)) for cut in range(count - 1, end)),
                default=best[end],
            )
            if end >= count
            else best[end]
            for end in range(middle + 1)
        ]
    starts = best[middle][1]
    return tuple(
        tuple(range(pattern.first + start, pattern.first + end))
        for start, end in zip(starts, (*starts[1:], middle), strict=True)
    )


def sharing_layers(
    layers: Sequence[LayerConfig], groups: Groups, *, rank: int = 0, own_first: bool = False, entry_bias: bool = False
) -> tuple[LayerConfig, ...]:
    """The layers with the first of each group as the home of the others.

    rank: of the residue of every layer in a group; own_first: the first of a group is the shared matrix itself and
    needs none. entry_bias: every layer but the first of its group has one.
    """
    found = list(layers)
    for group in groups:
        for layer in group if len(group) > 1 else ():
            home = layer == group[0]
            found[layer] = dataclasses.replace(
                found[layer],
                weights=None if home else group[0],
                residue_rank=0 if home and own_first else rank,
                entry_bias=entry_bias and not home,
            )
    return tuple(found)


def _blocks(pattern: Adjacent | Loop, num_layers: int) -> int:
    """Layers between the ends, a multiple of `times`."""
    middle = num_layers - _check(pattern, num_layers).first - pattern.last
    if middle % pattern.times:
        raise InvalidRequestError(
            f"{middle} layers between the {pattern.first} first and the {pattern.last} last do not divide into "
            f"{pattern.times} equal parts; sought a multiple of {pattern.times}"
        )
    return middle


def _check(pattern: Adjacent | Loop, num_layers: int) -> Adjacent | Loop:
    if pattern.times < 1 or min(pattern.first, pattern.last) < 0 or pattern.first + pattern.last >= num_layers:
        raise InvalidRequestError(
            f"{pattern}: sought times of at least 1, and layers between the ends of {num_layers} layers"
        )
    return pattern
