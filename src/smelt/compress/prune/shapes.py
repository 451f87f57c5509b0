"""The search: shapes near a target, within limits, ranked by how little of what matters they lose.

Width first: what one shot may take is limited (Minitron's settings: 40 % of a width, 20 % of the depth, a third of the
parameters), because what is beyond does not come back by distillation; a smaller target takes several shots.

The rank is a sum over axes of the share of importance lost times what that share costs. The prices are measured:
`probes` are shapes that cut one axis alone, and the rise of the loss at each, per share lost, is its axis's price.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from smelt.compress.prune.importance import Importance, Losses, Lost, Shape, kept_layers, shaped
from smelt.compress.prune.slice import hidden_unit
from smelt.core.cost import Floats, Rates, decode_seconds, weight_bytes
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import Scheme

_FAVOURED = 32  # GGUF's Q8_0 and Q4_0, and the native core, store rows in blocks of 32
_COARSEST = 0.1
_STEPS = (256, 128, 64, _FAVOURED, 16, 8, 4, 2, 1)


class Target(Protocol):
    """What the pruned model must fit."""

    def burden(self, config: DecoderConfig, source: DecoderConfig) -> float:
        """What a shape costs as a share of what it may: up to 1 it fits."""
        ...


@dataclass(frozen=True, kw_only=True)
class Share:
    """So much of the source's parameters, embeddings included: 0.7 leaves seventy per cent."""

    of_parameters: float

    def burden(self, config: DecoderConfig, source: DecoderConfig) -> float:
        """Parameters against the share of the source's."""
        return config.num_parameters / (self.of_parameters * source.num_parameters)


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Weights of at most `at_most` bytes when they are stored so; what a later stage quantizes to counts, if named."""

    at_most: int
    stored: Floats | Scheme = "bf16"

    def burden(self, config: DecoderConfig, source: DecoderConfig) -> float:
        """Bytes against the limit."""
        return weight_bytes(config, self.stored) / self.at_most


@dataclass(frozen=True, kw_only=True)
class Speed:
    """At least `tok_s` decoded for one user at `position`, as `rates` of a machine predict."""

    tok_s: float
    rates: Rates
    position: int = 256

    def burden(self, config: DecoderConfig, source: DecoderConfig) -> float:
        """Seconds a token against those allowed."""
        return decode_seconds(config, self.rates, self.position) * self.tok_s


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Shares that one shot may take at most. multiple: of hidden and MLP widths; None: what suits the model's size.

    tolerance: how far below the target a shape may stay to be considered; where the grid is too coarse for a choice it
    is doubled, up to a tenth, and further only where there is no shape at all.
    """

    width: float = 0.4
    depth: float = 0.2
    parameters: float = 1 / 3
    multiple: int | None = None
    tolerance: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A shape, the share of each axis's importance it loses, and what of the target it takes (at most 1)."""

    shape: Shape
    lost: Lost
    burden: float


def check_limits(limits: Limits) -> None:
    """Raises InvalidRequestError for shares that are none."""
    for name in ("width", "depth", "parameters"):
        if not 0.0 <= (value := getattr(limits, name)) < 1.0:
            raise InvalidRequestError(f"limits.{name} is {value}; sought a share from 0 to below 1", param=name)
    if limits.multiple is not None and limits.multiple < 1:
        raise InvalidRequestError(f"limits.multiple is {limits.multiple}; sought 1 or more", param="multiple")
    if not 0.0 < limits.tolerance <= 1.0:
        raise InvalidRequestError(f"limits.tolerance is {limits.tolerance}; sought above 0, up to 1", param="tolerance")


def widths(width: int, limits: Limits, unit: int = 1) -> list[int]:
    """What a width may become: itself and multiples of a step below it down to the limit, those that `unit` divides.

    Without a step given: the largest power of two up to 256 that leaves six choices, where 32 leaves three no less. A
    finer grid is worth it: spark's 6 heads leave no multiple of 32, and at 70 % of its parameters the best shape on one
    of 8 lost 0.012 bits per byte where the best on one of 32, a layer or a head shorter, lost 0.113.
    """
    lowest = math.ceil(width * (1 - limits.width) - 1e-9)

    def choices(step: int) -> list[int]:
        return [n for n in sorted({width, *range(-(-lowest // step) * step, width, step)}) if n % unit == 0]

    if limits.multiple is not None:
        return choices(limits.multiple)
    for step in _STEPS:
        if len(choices(step)) >= (6 if step > _FAVOURED else 3):
            return choices(step)
    return choices(1)


def counts(number: int, share: float) -> list[int]:
    """What a number of things may become when at most `share` of them may go."""
    return list(range(max(1, math.ceil(number * (1 - share) - 1e-9)), number + 1))


def shapes(config: DecoderConfig, limits: Limits) -> Iterator[Shape]:
    """Every shape within the limits that a config.json of the family can say and transformers loads."""
    whole = Shape.of(config)
    for groups in counts(whole.num_kv_heads, limits.width):
        for heads in counts(whole.heads_per_group, limits.width):
            unit = hidden_unit(config.family, groups * heads)
            for hidden in widths(whole.hidden_size, limits, unit):
                for inner in widths(whole.intermediate_size, limits):
                    for num_layers in counts(whole.num_layers, limits.depth):
                        yield Shape(
                            num_layers=num_layers,
                            hidden_size=hidden,
                            intermediate_size=inner,
                            num_kv_heads=groups,
                            heads_per_group=heads,
                        )


def near(
    config: DecoderConfig, found: Importance, target: Target, limits: Limits, *, enough: int = 1
) -> list[Candidate]:
    """The shapes that fit the target and stay closest to it, `enough` of them if the grid has so many, in its order.

    Raises InvalidRequestError where nothing within one shot's limits fits, or where the source fits as it is.
    """
    check_limits(limits)
    if target.burden(config, config) <= 1.0:
        raise InvalidRequestError("the model meets the target as it is: there is nothing to prune")
    least = (1 - limits.parameters) * config.num_parameters
    fitting: list[tuple[Shape, float]] = []
    smallest = math.inf
    for shape in shapes(config, limits):
        layers = kept_layers(found.layers, config.layers, shape.num_layers)
        smaller = shaped(config, shape, layers)
        if smaller.num_parameters < least:
            continue
        burden = target.burden(smaller, config)
        smallest = min(smallest, burden)
        if burden <= 1.0:
            fitting.append((shape, burden))
    if not fitting:
        raise InvalidRequestError(
            f"nothing within one shot's limits (width {limits.width:.0%}, depth {limits.depth:.0%}, parameters "
            f"{limits.parameters:.0%}) meets the target: the smallest shape takes {smallest:.2f} of what it may. "
            "Prune in several shots, with distillation between them, or raise the limits"
        )
    tolerance = limits.tolerance

    def num_near() -> int:
        return sum(burden >= 1.0 - tolerance for _, burden in fitting)

    while num_near() == 0 or (num_near() < enough and tolerance <= _COARSEST / 2):
        tolerance *= 2
    losses = Losses(found, config)
    return [
        Candidate(shape=shape, lost=losses.at(shape), burden=burden)
        for shape, burden in fitting
        if burden >= 1.0 - tolerance
    ]


AXES = tuple(f.name for f in fields(Lost))


def probes(config: DecoderConfig, limits: Limits) -> dict[str, Shape]:
    """For each axis that can be cut, a shape with about half of what may go of it gone, and nothing else."""
    whole, unit = Shape.of(config), hidden_unit(config.family, config.num_heads)

    def middle(values: list[int]) -> int:
        return values[(len(values) - 1) // 2]

    def cut(**changes: int) -> Shape:
        return Shape(**({name: getattr(whole, name) for name in Shape.__slots__} | changes))

    heads = counts(whole.num_kv_heads, limits.width)
    per_group = counts(whole.heads_per_group, limits.width)
    found = {
        "layers": cut(num_layers=middle(counts(whole.num_layers, limits.depth))),
        "hidden": cut(hidden_size=middle(widths(whole.hidden_size, limits, unit))),
        "neurons": cut(intermediate_size=middle(widths(whole.intermediate_size, limits))),
        "heads": cut(num_kv_heads=middle(heads)) if len(heads) > 1 else cut(heads_per_group=middle(per_group)),
    }
    return {axis: shape for axis, shape in found.items() if shape != whole}


def ranked(candidates: list[Candidate], prices: Mapping[str, float], count: int) -> list[Candidate]:
    """The `count` that should lose least. prices: by axis, the loss a share of 1 would cost."""

    def expected(candidate: Candidate) -> tuple[float, Shape]:
        return sum(prices.get(axis, 0.0) * getattr(candidate.lost, axis) for axis in AXES), candidate.shape

    return sorted(candidates, key=expected)[:count]
