"""From scores to ranks: what stays at a given shape, how much of what mattered goes, and how norms are repaired.

Ties go to the lower index, so that a choice is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from smelt.compress.prune.scores import Scores, Sums, norm_names
from smelt.compress.prune.slice import Kept
from smelt.core.decoder import DecoderConfig, LayerConfig
from smelt.core.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Shape:
    """How much stays. Query heads: num_kv_heads * heads_per_group; the width of a head never changes."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_kv_heads: int
    heads_per_group: int

    @classmethod
    def of(cls, config: DecoderConfig) -> Shape:
        """Of a decoder."""
        return cls(
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_kv_heads=config.num_kv_heads,
            heads_per_group=config.num_heads // config.num_kv_heads,
        )


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What each part is worth, larger is more: neurons [L, F], heads [L, N], hidden [H], layers [L]."""

    neurons: Sums
    heads: Sums
    hidden: Sums
    layers: Sums


def importance(
    scores: Scores,
    config: DecoderConfig,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
) -> Importance:
    """Minitron's: L2 over documents of the mean absolute activity; over a head's channels, L2; over norms, the sum.

    tensors: multiply each neuron's and head channel's activity by the norm of the column that reads it. Activity alone
    is blind to a loud neuron nobody listens to.
    """
    neurons, channels = np.sqrt(scores.neurons), np.sqrt(scores.heads)
    if tensors is not None:
        neurons = neurons * _column_norms(config, tensors, "mlp.down_proj")
        channels = channels * _column_norms(config, tensors, "self_attn.o_proj")
    per_head = channels.reshape(config.num_layers, config.num_heads, config.head_dim)
    return Importance(
        neurons=neurons,
        heads=np.sqrt(np.square(per_head).sum(-1)),
        hidden=np.sqrt(scores.norms).sum(0),
        layers=scores.layers / max(1, scores.num_tokens),
    )


def _column_norms(config: DecoderConfig, tensors: Mapping[str, NDArray[np.float32]], slot: str) -> Sums:
    names = [f"model.layers.{i}.{slot}.weight" for i in range(config.num_layers)]
    return np.stack([np.sqrt(np.square(tensors[name].astype(np.float64)).sum(0)) for name in names])


def kept_at(found: Importance, config: DecoderConfig, shape: Shape) -> Kept:
    """The most important parts at a shape, each in the source's order.

    Raises InvalidRequestError for a shape that is not within the source's.
    """
    check_within(config, shape)
    layers = kept_layers(found.layers, config.layers, shape.num_layers)
    per_group = config.num_heads // config.num_kv_heads
    groups, heads = [], []
    for layer in layers:
        by_group = found.heads[layer].reshape(config.num_kv_heads, per_group)
        kept_groups = best(np.sqrt(np.square(by_group).sum(-1)), shape.num_kv_heads)
        groups.append(kept_groups)
        heads.append(
            tuple(g * per_group + head for g in kept_groups for head in best(by_group[g], shape.heads_per_group))
        )
    return Kept(
        layers=layers,
        hidden=best(found.hidden, shape.hidden_size),
        neurons=tuple(best(found.neurons[layer], shape.intermediate_size) for layer in layers),
        groups=tuple(groups),
        heads=tuple(heads),
    )


def check_within(config: DecoderConfig, shape: Shape) -> None:
    """Raises InvalidRequestError, naming the field, for a shape that is empty or larger than the source."""
    whole = Shape.of(config)
    for name in Shape.__slots__:
        value, limit = getattr(shape, name), getattr(whole, name)
        if not 1 <= value <= limit:
            raise InvalidRequestError(f"{name} is {value}; sought 1..{limit}, as pruning only takes away", param=name)


def best(worth: Sums, count: int) -> tuple[int, ...]:
    """The indices of the `count` largest, ascending."""
    order = np.argsort(-worth, kind="stable")[:count]
    return tuple(sorted(int(i) for i in order))


def kept_layers(worth: Sums, layers: Sequence[LayerConfig], count: int) -> tuple[int, ...]:
    """The layers that stay: the least worthy go, but never the first, the last, or the last of its kind.

    A kind is a window and a rotary base: a Gemma must keep a global layer, whatever the scores say of short texts.
    Where even those are more than `count`, kinds are not protected.
    """
    kept = set(range(len(layers)))
    order = [int(i) for i in np.argsort(worth, kind="stable")]
    for protects_kinds in (True, False):
        for i in order:
            inner = 0 < i < len(layers) - 1 and i in kept
            alone = sum(layers[j] == layers[i] for j in kept) == 1
            if len(kept) > count and inner and not (protects_kinds and alone):
                kept.discard(i)
    if len(kept) > count:  # one or two layers asked for: the first, then the last
        kept = set(sorted(kept)[:count])
    return tuple(sorted(kept))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """The share of each axis's importance (squared: energy) that goes, 0..1."""

    layers: float
    hidden: float
    neurons: float
    heads: float


class Losses:
    """What goes at any shape; sorted once, so that thousands of shapes can be asked for."""

    def __init__(self, found: Importance, config: DecoderConfig) -> None:
        self._found, self._layers = found, config.layers
        self._hidden = _kept_shares(np.square(found.hidden)[None])[0]
        self._neurons = _kept_shares(np.square(found.neurons))
        self._heads = np.square(found.heads).reshape(config.num_layers, config.num_kv_heads, -1)

    def at(self, shape: Shape) -> Lost:
        """Neurons and heads: the mean over the layers that stay."""
        layers = list(kept_layers(self._found.layers, self._layers, shape.num_layers))
        worth = self._found.layers
        total = float(worth.sum())
        return Lost(
            layers=0.0 if total <= 0.0 else max(0.0, 1.0 - float(worth[layers].sum()) / total),
            hidden=1.0 - float(self._hidden[shape.hidden_size - 1]),
            neurons=1.0 - float(self._neurons[layers, shape.intermediate_size - 1].mean()),
            heads=self._heads_lost(layers, shape),
        )

    def _heads_lost(self, layers: list[int], shape: Shape) -> float:
        energy = self._heads[layers]  # [kept layers, groups, heads in a group]
        per_group = -np.sort(-energy, axis=-1)[..., : shape.heads_per_group].sum(-1)
        best_groups = np.argsort(-energy.sum(-1), axis=-1, kind="stable")[:, : shape.num_kv_heads]
        kept = np.take_along_axis(per_group, best_groups, axis=-1).sum(-1)
        total = energy.sum((-1, -2))
        return max(0.0, 1.0 - float(np.mean(np.divide(kept, total, out=np.ones_like(kept), where=total > 0))))


def _kept_shares(worth: Sums) -> Sums:
    """[R, n]: column k - 1 is the share of a row's sum that its k largest have."""
    summed = np.cumsum(-np.sort(-worth, axis=-1), axis=-1)
    total = summed[:, -1:]
    return np.divide(summed, total, out=np.ones_like(summed), where=total > 0)


def shaped(config: DecoderConfig, shape: Shape, layers: tuple[int, ...]) -> DecoderConfig:
    """A decoder of that shape for counting; embedding_scale is left alone."""
    return replace(
        config,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_heads=shape.num_kv_heads * shape.heads_per_group,
        num_kv_heads=shape.num_kv_heads,
        layers=tuple(config.layers[i] for i in layers),
    )


def norm_gains(scores: Scores, config: DecoderConfig, hidden: tuple[int, ...]) -> dict[str, float]:
    """What each norm's gain is multiplied with so that outputs keep their size over fewer channels.

    A token's RMSNorm divides by sqrt(mean square) of the kept channels instead of all; the ratio of the two, as the
    calibration set has it on average, is put into the gain. Every token counts the same however large its stream is.
    """
    if scores.num_tokens == 0:
        return {}
    ratio = scores.inside[:, list(hidden)].mean(-1) / scores.num_tokens
    return {name: float(np.sqrt(value)) for name, value in zip(norm_names(config), ratio, strict=True) if value > 0}
