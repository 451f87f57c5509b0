"""What a GGUF file says of a decoder's shape, in the keys llama.cpp reads, and what it cannot say.

llama.cpp fixes a part of each architecture in its code. What of a configuration differs from that is expressed in
another way where there is one (Header.query_gain, Header.notes) or refused by name; nothing is left out silently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from smelt.core.decoder import DecoderConfig, Family, LayerConfig, RopeConfig
from smelt.core.errors import UnsupportedError

ARCHITECTURES: dict[Family, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
_GEMMA_LOCAL_BASE = 1e4  # what llama.cpp takes for sliding layers where the file says nothing
_GEMMA_PERIOD = 6  # likewise: five sliding layers, then one that sees everything
_GEMMA_27B_LAYERS = 62  # llama.cpp takes this depth for the 27B model, whose scale differs from its siblings'


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """architecture: llama.cpp's name. keys: without the architecture's prefix, ints, floats, strings.

    context_len: what the file gives as the trained context; shorter than the model's where it had to be.
    query_gain: what queries must be multiplied with, because the reader's own scale is another.
    frequency_factors: what rotary frequencies are divided by, one each; None: nothing.
    notes: what a user should know, in sentences.
    """

    architecture: str
    keys: dict[str, int | float | str]
    context_len: int
    query_gain: float = 1.0
    frequency_factors: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


def header_of(config: DecoderConfig) -> Header:
    """The header of a plain decoder. Raises UnsupportedError, naming it, for what llama.cpp does not compute."""
    _check(config)
    gemma = config.family == "gemma3_text"
    keys: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.ropes[0].base),
    }
    notes: list[str] = []
    context_len = config.context_len
    if gemma:
        keys |= _gemma_keys(config, notes)
    else:
        windows = [layer.window for layer in config.layers if layer.window is not None]
        if windows and min(windows) < context_len:
            context_len = min(windows)
            notes.append(
                f"llama.cpp knows no sliding windows in {config.family}: the file's context is cut from "
                f"{config.context_len} to {context_len} tokens, up to which both compute the same"
            )
    rope_keys, factors = _rope(config.ropes[0], config)
    return Header(
        architecture=ARCHITECTURES[config.family],
        keys=keys | {"context_length": context_len} | rope_keys,
        context_len=context_len,
        query_gain=config.attention_scale / _reader_scale(config),
        frequency_factors=factors,
        notes=tuple(notes),
    )


def _check(config: DecoderConfig) -> None:
    gemma = config.family == "gemma3_text"
    if not config.plain:
        raise UnsupportedError(
            f"{config.family} with variants of ours has no place in a GGUF file; sought plain layers"
        )
    wanted: list[tuple[str, Any, Any]] = [("activation", config.activation, "gelu_tanh" if gemma else "silu")]
    if config.family != "llama":
        wanted.append(("mlp_bias", config.mlp_bias, False))
        wanted.append(("o_bias", config.o_bias, False))
    if gemma:
        wanted.append(("qkv_bias", config.qkv_bias, False))
    if config.family == "qwen2" and config.num_heads * config.head_dim != config.hidden_size:
        wanted.append(("num_heads x head_dim", config.num_heads * config.head_dim, config.hidden_size))
    for name, found, sought in wanted:
        if found != sought:
            raise UnsupportedError(f"llama.cpp's {ARCHITECTURES[config.family]} has {name} = {sought}, not {found}")


def _reader_scale(config: DecoderConfig) -> float:
    """What the reader multiplies q.k with."""
    if config.family == "gemma3_text" and config.num_layers == _GEMMA_27B_LAYERS:
        return float((config.hidden_size / config.num_heads) ** -0.5)
    return float(config.head_dim**-0.5)


# --------------------------------------------------------------------------------------------------- Gemma's windows


def _gemma_keys(config: DecoderConfig, notes: list[str]) -> dict[str, int | float | str]:
    windows = {layer.window for layer in config.layers if layer.window is not None}
    period = sliding_period(config.layers)
    if period is None or len(windows) > 1:
        kinds = "".join("g" if layer.window is None else "s" for layer in config.layers)
        raise UnsupportedError(
            f"llama.cpp's gemma3 takes one layer that sees everything after every n-1 sliding ones of one window; "
            f"found {kinds} (g: everything, s: sliding), windows {sorted(windows)}"
        )
    if config.ropes[1].scaling != "default":
        raise UnsupportedError("llama.cpp's gemma3 does not scale rotary frequencies of sliding layers")
    if not windows:  # llama.cpp wants one that slides: then all do, and see everything all the same
        if config.ropes[0].scaling != "default":
            raise UnsupportedError("llama.cpp's gemma3 scales rotary frequencies only beside layers that slide")
        return {
            "attention.sliding_window": config.context_len,
            "attention.sliding_window_pattern": config.num_layers + 1,
            "rope.freq_base_swa": float(config.ropes[0].base),
        }
    keys: dict[str, int | float | str] = {"attention.sliding_window": min(windows)}
    if period != _GEMMA_PERIOD:
        keys["attention.sliding_window_pattern"] = period
        notes.append(f"one layer in {period} sees everything; a llama.cpp that assumes one in 6 would compute nonsense")
    if config.ropes[1].base != _GEMMA_LOCAL_BASE:
        keys["rope.freq_base_swa"] = float(config.ropes[1].base)
        notes.append(f"sliding layers turn at base {config.ropes[1].base:g}; older llama.cpp takes 10000")
    return keys


def sliding_period(layers: tuple[LayerConfig, ...]) -> int | None:
    """The n of "every n-th layer sees everything, the others slide": 6 where it fits, else the least; None: no such n.

    The rotary embedding must go with the kind of layer, as Gemma 3's do.
    """
    kinds = [layer.window is not None for layer in layers]
    if any(layer.rope != int(slides) for layer, slides in zip(layers, kinds, strict=True)):
        return None
    periods = (_GEMMA_PERIOD, *range(1, len(kinds) + 2))
    return next((n for n in periods if kinds == [i % n < n - 1 for i in range(len(kinds))]), None)


# ------------------------------------------------------------------------------------------------- rotary embeddings


def _rope(rope: RopeConfig, config: DecoderConfig) -> tuple[dict[str, int | float | str], tuple[float, ...] | None]:
    """Keys that scale rotary frequencies, and factors for what keys cannot say."""
    if rope.scaling == "default":
        return {}, None
    if rope.scaling == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}, None
    where = f"llama.cpp's {ARCHITECTURES[config.family]}"
    if rope.scaling == "llama3":
        if ARCHITECTURES[config.family] != "llama":
            raise UnsupportedError(f"{where} takes no rotary frequencies by band (llama3); only its llama does")
        plain = RopeConfig(base=rope.base).inv_freq(config.head_dim)
        scaled = rope.inv_freq(config.head_dim)
        return {}, tuple(one / other for one, other in zip(plain, scaled, strict=True))
    usual = 0.1 * math.log(max(rope.factor, 1.0)) + 1.0
    if config.family == "gemma3_text" or not rope.truncate or abs(rope.cos_sin_factor() - usual) > 1e-6:
        raise UnsupportedError(
            f"{where} computes YaRN with whole bounds and the usual attention factor, {usual:.4f}, on all layers; "
            f"found truncate = {rope.truncate}, factor {rope.cos_sin_factor():.4f}"
        )
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope.factor),
        "rope.scaling.original_context_length": rope.original_max_position,
        "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
        "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
    }, None
