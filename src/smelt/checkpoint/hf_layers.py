"""The layers of a config.json: windows as the families write them, and the variants that only smelt computes.

The variants are lists with an entry a layer, each written only where it says something:
`layer_weights` (the layer whose matrices it computes with: itself or an earlier one), `layer_residue_ranks`,
`layer_entry_biases`, `layer_linear` (null, or an object with the fields of `core.decoder.LinearConfig`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

from smelt.checkpoint.config_reader import ConfigReader
from smelt.core.decoder import Family, LayerConfig, LinearConfig

_KINDS_OF_LAYER = ("full_attention", "sliding_attention")
_KINDS_OF_LINEAR = get_args(get_type_hints(LinearConfig)["kind"])
_LAYER_LIMIT = 1024
_RANK_LIMIT = 1 << 16
_STATE_LIMIT = 1 << 16  # tokens of a linear layer's window, and features of a head


def read_layers(reader: ConfigReader, family: Family) -> tuple[LayerConfig, ...]:
    """The layers as every reader of the family knows them."""
    num_layers = reader.whole("num_hidden_layers", at_most=_LAYER_LIMIT)
    if family == "llama":
        return (LayerConfig(),) * num_layers
    if family == "mistral":
        window = reader.whole("sliding_window", 1 << 12) if _mistral_slides(reader) else None
        return (LayerConfig(window=window),) * num_layers
    kinds = _kinds(reader, family, num_layers)
    window = None
    if family == "gemma3_text" or reader.flag("use_sliding_window", False):
        window = reader.whole("sliding_window", 1 << 12)
    reader.harmless(frozenset({"sliding_window", "max_window_layers", "sliding_window_pattern"}))
    reader.harmless(frozenset({"_sliding_window_pattern"} if family == "gemma3_text" else ()))
    sliding = [kind == "sliding_attention" for kind in kinds]
    if any(sliding) and window is None:
        raise reader.wrong("use_sliding_window", False, "true where layer_types has sliding_attention")
    return tuple(LayerConfig(window=window if s else None, rope=int(s and family == "gemma3_text")) for s in sliding)


def _mistral_slides(reader: ConfigReader) -> bool:
    """An absent sliding_window means transformers' default of 4096; null means none."""
    return reader.has("sliding_window") or not reader.says("sliding_window")


def _kinds(reader: ConfigReader, family: Family, num_layers: int) -> list[str]:
    """The kind of every layer, from `layer_types` or from the older keys it replaced."""
    if reader.has("layer_types"):
        kinds = reader.take("layer_types")
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            raise reader.wrong("layer_types", kinds, f"a list of {num_layers}, one per layer")
        for kind in kinds:
            if kind not in _KINDS_OF_LAYER:
                raise reader.refuse("layer_types", kind, f"known are {', '.join(_KINDS_OF_LAYER)}")
        return kinds
    if family == "gemma3_text":
        key = "sliding_window_pattern" if reader.has("sliding_window_pattern") else "_sliding_window_pattern"
        every = reader.whole(key, 6)
        return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(num_layers)]
    if not reader.flag("use_sliding_window", False) or not reader.has("sliding_window"):
        return ["full_attention"] * num_layers
    first = reader.whole("max_window_layers", at_least=0)
    return ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]


def read_variants(reader: ConfigReader, layers: Sequence[LayerConfig]) -> tuple[LayerConfig, ...]:
    """`layers` with what the keys of our own say about each. Raises CheckpointError for lists that cannot be."""
    homes = _list(reader, "layer_weights", list(range(len(layers))), _is_layer, "layer numbers")
    ranks = _list(reader, "layer_residue_ranks", [0] * len(layers), _is_rank, f"whole numbers 0..{_RANK_LIMIT}")
    entries = _list(reader, "layer_entry_biases", [False] * len(layers), lambda v: isinstance(v, bool), "true or false")
    if any(home > i or homes[home] != home for i, home in enumerate(homes)):
        raise reader.wrong("layer_weights", homes, "each layer itself, or an earlier one that names itself")
    linear = _linear(reader, layers)
    return tuple(
        dataclasses.replace(
            layer, weights=None if home == i else home, residue_rank=rank, entry_bias=entry, linear=linear[i]
        )
        for i, (layer, home, rank, entry) in enumerate(zip(layers, homes, ranks, entries, strict=True))
    )


def _linear(reader: ConfigReader, layers: Sequence[LayerConfig]) -> list[LinearConfig | None]:
    sought = "null or objects with kind, window and feature_dim"
    found = _list(reader, "layer_linear", [None] * len(layers), lambda v: v is None or isinstance(v, dict), sought)
    made: list[LinearConfig | None] = []
    for i, (layer, section) in enumerate(zip(layers, found, strict=True)):
        if section is None:
            made.append(None)
            continue
        if layer.window is not None:
            raise reader.wrong("layer_linear", found, f"null for layer {i}, which slides")
        inner = ConfigReader(section, f"config.json: layer_linear[{i}].")
        if (kind := inner.take("kind")) not in _KINDS_OF_LINEAR:
            raise inner.refuse("kind", kind, f"known are {', '.join(_KINDS_OF_LINEAR)}")
        sizes = {size: inner.whole(size, at_most=_STATE_LIMIT) for size in ("window", "feature_dim")}
        inner.finish({})
        made.append(LinearConfig(kind=kind, **sizes))
    return made


def write_variants(layers: Sequence[LayerConfig]) -> dict[str, Any]:
    """What `read_variants` reads; nothing for plain layers."""
    keys: dict[str, Any] = {}
    if any(layer.weights is not None for layer in layers):
        keys["layer_weights"] = [i if layer.weights is None else layer.weights for i, layer in enumerate(layers)]
    if any(layer.residue_rank for layer in layers):
        keys["layer_residue_ranks"] = [layer.residue_rank for layer in layers]
    if any(layer.entry_bias for layer in layers):
        keys["layer_entry_biases"] = [layer.entry_bias for layer in layers]
    if any(layer.linear is not None for layer in layers):
        keys["layer_linear"] = [None if layer.linear is None else dataclasses.asdict(layer.linear) for layer in layers]
    return keys


def _list(reader: ConfigReader, key: str, default: list[Any], fits: Callable[[Any], bool], sought: str) -> list[Any]:
    found = reader.take(key, default)
    if not isinstance(found, list) or len(found) != len(default) or not all(map(fits, found)):
        raise reader.wrong(key, found, f"a list of {len(default)} {sought}, one per layer")
    return found


def _is_layer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LAYER_LIMIT


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _RANK_LIMIT
