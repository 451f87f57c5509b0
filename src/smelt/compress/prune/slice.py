"""What stays of a decoder, and the smaller decoder made of it.

Everything is uniform over the layers, so that a config.json of the family describes the result: which neurons and heads
stay differs from layer to layer, how many does not. Slicing is lazy: a tensor is read when it is asked for.

RMSNorm divides by a mean over fewer channels then, so a norm's gain is scaled by what `gains` says (see
`importance.norm_gains`). Gemma multiplies embeddings by sqrt(hidden_size), which a reader computes from the new width.
The head may share the embedding's matrix, so the matrix cannot make up for it; but every reader of the residual stream
is an RMSNorm and every writer a post norm, so the whole stream may carry a factor: with the gains of all post norms
(and the privileges table) scaled by sqrt(new / old) like the embeddings, no logit changes (but for norm_eps).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError, UnsupportedError

Array = NDArray[np.float32]
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_MATRICES = frozenset("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
_NORMS = "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm q_norm k_norm"
_SLOTS = _MATRICES | frozenset(_NORMS.split())
_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Indices into the source, in the order they take in the result.

    layers: source layers. hidden: channels of the residual stream. For each kept layer: `neurons` of the MLP, `groups`
    of attention (key/value heads), and `heads`, the query heads of the kept groups, group by group, as many of each.
    """

    layers: tuple[int, ...]
    hidden: tuple[int, ...]
    neurons: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    heads: tuple[tuple[int, ...], ...]

    @classmethod
    def everything(cls, config: DecoderConfig) -> Kept:
        """All there is, in its own order."""
        num = config.num_layers
        return cls(
            layers=tuple(range(num)),
            hidden=tuple(range(config.hidden_size)),
            neurons=(tuple(range(config.intermediate_size)),) * num,
            groups=(tuple(range(config.num_kv_heads)),) * num,
            heads=(tuple(range(config.num_heads)),) * num,
        )


def check_prunable(config: DecoderConfig) -> None:
    """Raises UnsupportedError for a decoder that has other tensors than plain layers of their own."""
    names = list(config.tensor_shapes())
    slots = {name.split(".")[-2] for name in names if _IN_LAYER.fullmatch(name)}
    num_matrices = sum(name.endswith("_proj.weight") for name in names)
    if slots <= _SLOTS and num_matrices == len(_MATRICES) * config.num_layers:
        return
    strange = ", ".join(sorted(slots - _SLOTS)) or "layers that share matrices"
    raise UnsupportedError(f"pruning knows plain layers, found {strange}: prune before layers are shared or linearised")


def hidden_unit(family: str, num_heads: int) -> int:
    """What `hidden_size` must be a multiple of for transformers to load it.

    Its Llama and Gemma 3 configurations refuse a width that the number of heads does not divide, even with an explicit
    head_dim (transformers 5, validate_architecture).
    """
    return num_heads if family in ("llama", "gemma3_text") else 1


def check_loads(family: str, hidden_size: int, num_heads: int) -> None:
    """Raises InvalidRequestError for widths that transformers would refuse to load."""
    unit = hidden_unit(family, num_heads)
    if hidden_size % unit:
        raise InvalidRequestError(
            f"hidden_size {hidden_size} with {num_heads} heads: transformers loads {family} only where the heads "
            f"divide the width; sought a multiple of {unit}",
            param="hidden_size",
        )


def sliced_config(config: DecoderConfig, kept: Kept) -> DecoderConfig:
    """The smaller decoder's shape; windows and rotary bases go with their layers.

    Raises InvalidRequestError where `kept` does not fit `config` or leaves layers of different widths.
    """
    _check(config, kept)
    hidden = len(kept.hidden)
    return replace(
        config,
        hidden_size=hidden,
        intermediate_size=len(kept.neurons[0]),
        num_heads=len(kept.heads[0]),
        num_kv_heads=len(kept.groups[0]),
        layers=tuple(config.layers[i] for i in kept.layers),
        embedding_scale=hidden**0.5 if _scales_by_width(config) else config.embedding_scale,
    )


def sliced(
    config: DecoderConfig, tensors: Mapping[str, Array], kept: Kept, gains: Mapping[str, float] | None = None
) -> tuple[DecoderConfig, Mapping[str, Array]]:
    """The smaller decoder and its tensors, read from `tensors` when asked for.

    gains: by the source's norm name, what its gain is multiplied with; 1 where it is not named.
    """
    smaller = sliced_config(config, kept)
    return smaller, _Sliced(config, smaller, tensors, kept, gains or {})


class _Sliced(Mapping[str, Array]):
    """Tensors of the smaller decoder; nothing is kept."""

    def __init__(
        self,
        config: DecoderConfig,
        smaller: DecoderConfig,
        tensors: Mapping[str, Array],
        kept: Kept,
        gains: Mapping[str, float],
    ) -> None:
        self._config, self._tensors, self._kept, self._gains = config, tensors, kept, gains
        self._names = list(smaller.tensor_shapes())
        self._stream = (smaller.hidden_size / config.hidden_size) ** 0.5 if _scales_by_width(config) else 1.0

    def __getitem__(self, name: str) -> Array:
        where = _IN_LAYER.fullmatch(name)
        row = int(where[1]) if where else -1
        source = f"model.layers.{self._kept.layers[row]}.{where[2]}" if where else name
        array = np.asarray(self._tensors[source])
        for axis, indices in enumerate(_axes(name, row, self._config, self._kept)):
            if indices is not None:
                array = np.take(array, indices, axis=axis)
        return self._scaled(source, array)

    def _scaled(self, source: str, array: Array) -> Array:
        if source == "model.embed_privileges.weight":  # is added behind the scaled embedding
            return (array * self._stream).astype(np.float32)
        if not is_stream_norm(source):
            return array
        factor = self._gains.get(source, 1.0)
        if self._config.post_norms and source.split(".")[-2] in _POST_NORMS:
            factor *= self._stream
        if factor == 1.0:
            return array
        offset = self._config.norm_offset
        return ((offset + array.astype(np.float64)) * factor - offset).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_stream_norm(name: str) -> bool:
    """Whether a tensor is the gain of a norm over the hidden width (q_norm and k_norm go over a head)."""
    return name == "model.norm.weight" or name.endswith("layernorm.weight")


def _scales_by_width(config: DecoderConfig) -> bool:
    """Whether readers compute the embedding's scale from the hidden width."""
    return config.family == "gemma3_text"


def _axes(name: str, row: int, config: DecoderConfig, kept: Kept) -> tuple[list[int] | None, ...]:
    """What is taken of each axis of a tensor of kept layer `row` (-1: outside the layers); None: all."""
    hidden = list(kept.hidden)
    if is_stream_norm(name):
        return (hidden,)
    if row < 0:  # embeddings, head, privileges: [ids, hidden]
        return (None, hidden)
    slot, kind = name.split(".")[-2:]
    if slot in ("q_norm", "k_norm"):
        return (None,)
    if slot in ("gate_proj", "up_proj", "down_proj"):
        inner = list(kept.neurons[row])
    else:
        inner = head_channels((kept.groups if slot in ("k_proj", "v_proj") else kept.heads)[row], config.head_dim)
    outwards = slot in ("o_proj", "down_proj")
    if kind == "bias":
        return (hidden if outwards else inner,)
    return (hidden, inner) if outwards else (inner, hidden)


def head_channels(heads: tuple[int, ...], head_dim: int) -> list[int]:
    """The rows of whole heads."""
    return [head * head_dim + i for head in heads for i in range(head_dim)]


def _check(config: DecoderConfig, kept: Kept) -> None:
    num = len(kept.layers)
    if not num or any(len(part) != num for part in (kept.neurons, kept.groups, kept.heads)):
        raise InvalidRequestError(f"kept: sought neurons, groups and heads for each of {num} layers")
    for name, rows, limit in (
        ("layers", (kept.layers,), config.num_layers),
        ("hidden", (kept.hidden,), config.hidden_size),
        ("neurons", kept.neurons, config.intermediate_size),
        ("groups", kept.groups, config.num_kv_heads),
        ("heads", kept.heads, config.num_heads),
    ):
        widths = {len(row) for row in rows}
        if len(widths) != 1 or 0 in widths:
            raise InvalidRequestError(f"kept.{name}: sought the same number, at least 1, everywhere; found {widths}")
        if any(len(set(row)) != len(row) or min(row) < 0 or max(row) >= limit for row in rows):
            raise InvalidRequestError(f"kept.{name}: sought different indices below {limit}")
    per_group = config.num_heads // config.num_kv_heads
    for heads, groups in zip(kept.heads, kept.groups, strict=True):
        each = len(heads) // len(groups)
        if len(heads) != each * len(groups) or any(
            head // per_group != groups[i // each] for i, head in enumerate(heads)
        ):
            raise InvalidRequestError("kept.heads: sought as many query heads of each kept group, in its order")
