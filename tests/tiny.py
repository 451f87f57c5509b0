"""Tiny random models: configurations of every family, weights drawn by numpy, and whole servable folders."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smelt.checkpoint import save_checkpoint
from smelt.checkpoint.safetensors import FloatDtype
from smelt.core.decoder import DecoderConfig, Family, LayerConfig, RopeConfig

WINDOW = 8  # tokens a sliding layer sees: small, so that short tests pass its edge
_LLAMA3 = RopeConfig(
    base=500.0, scaling="llama3", factor=4.0, original_max_position=32, low_freq_factor=1.0, high_freq_factor=4.0
)
_YARN = RopeConfig(base=100.0, scaling="yarn", factor=4.0, original_max_position=64, beta_fast=8.0, beta_slow=1.0)
_LINEAR = RopeConfig(base=1000.0, scaling="linear", factor=2.0)


def tiny_config(family: Family = "llama", **changes: Any) -> DecoderConfig:
    """A decoder of a few thousand parameters in the shape its family has; `changes` replace fields."""
    num_layers = changes.pop("num_layers", 3)
    gemma = family == "gemma3_text"
    window = {"mistral": WINDOW, "gemma3_text": WINDOW}.get(family)
    layers = tuple(
        LayerConfig(window=None if gemma and i == 1 else window, rope=int(gemma and i != 1)) for i in range(num_layers)
    )
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "layers": layers,
        "ropes": (RopeConfig(base=1e6), RopeConfig(base=1e4)) if gemma else (RopeConfig(base=1e4),),
        "context_len": 256,
        "norm_offset": float(gemma),
        "activation": "gelu_tanh" if gemma else "silu",
        "qkv_bias": family == "qwen2",
        "qk_norm": family in ("qwen3", "gemma3_text"),
        "post_norms": gemma,
        "tie_embeddings": gemma,
        "embedding_scale": 48**0.5 if gemma else 1.0,
        "attention_scale": 16**-0.5,
        "bos_id": 0,
        "eos_ids": (1,),
    }
    return DecoderConfig(**(fields | changes))


def variants() -> dict[str, DecoderConfig]:
    """Every family, and every feature that changes the arithmetic, at least once."""
    full, slide = LayerConfig(), LayerConfig(window=WINDOW)
    gemma = tiny_config("gemma3_text")
    return {
        "llama": tiny_config("llama"),
        "llama-tied-biases": tiny_config("llama", tie_embeddings=True, qkv_bias=True, o_bias=True, mlp_bias=True),
        "llama-llama3": tiny_config("llama", ropes=(_LLAMA3,)),
        "llama-linear": tiny_config("llama", ropes=(_LINEAR,), num_kv_heads=1),
        "llama-gelu": tiny_config("llama", activation="gelu_tanh", num_kv_heads=4, norm_eps=1e-5),
        "mistral": tiny_config("mistral"),
        "mistral-no-window": tiny_config("mistral", layers=(full,) * 2, tie_embeddings=True),
        "qwen2": tiny_config("qwen2", tie_embeddings=True),
        "qwen2-yarn-window": tiny_config("qwen2", ropes=(_YARN,), layers=(full, slide, slide)),
        "qwen3": tiny_config("qwen3"),
        "qwen3-yarn-biases": tiny_config(
            "qwen3",
            ropes=(dataclasses.replace(_YARN, attention_factor=1.2, truncate=False),),
            qkv_bias=True,
            o_bias=True,
            tie_embeddings=True,
            layers=(slide, full, slide),
        ),
        "gemma3": gemma,
        "gemma3-linear": tiny_config(
            "gemma3_text", ropes=(dataclasses.replace(_LINEAR, factor=8.0), gemma.ropes[1]), attention_scale=0.125
        ),
        "gemma3-two-scalings": tiny_config(
            "gemma3_text", ropes=(_LLAMA3, _LINEAR), tie_embeddings=False, qkv_bias=True, o_bias=True
        ),
    }


def random_tensors(config: DecoderConfig, seed: int = 0, *, spread: float = 1.0) -> dict[str, NDArray[np.float32]]:
    """Weights that keep activations near unit size and give every bias and norm something to do.

    `spread` multiplies the standard deviation of matrices: larger gives a surer model.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        noise = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            array = 1.0 - config.norm_offset + 0.2 * noise
        elif name.endswith(".bias"):
            array = 0.3 * noise
        elif name == "model.embed_tokens.weight":
            array = noise * spread / config.embedding_scale
        else:
            array = noise * spread * shape[-1] ** -0.5
        tensors[name] = array.astype(np.float32)
    return tensors


_TEXTS = (
    "The quick brown fox jumps over the lazy dog. Please tell me the weather in Berlin today, thank you.",
    'What is the weather like in Paris? {"city": "Paris", "unit": "celsius", "days": 3, "now": true}',
    "Wie ist das Wetter heute in München? Bitte sagen Sie es mir auf Deutsch, danke schön.",
    "今天北京的天气怎么样？请告诉我，谢谢。",
    'def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n{"name": "Ada", "items": ["one", "two"], "total": 12.50}',
)


@cache
def tiny_tokenizer_files(vocab_size: int = 400) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Tokenizer files of a folder in the house format, and the fields of DecoderConfig that follow from them."""
    from smelt.chat.house import HOUSE_CONTROLS
    from smelt.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(_TEXTS * 2, vocab_size, controls=HOUSE_CONTROLS)
    controls = tokenizer.control_ids
    named = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    files = {"tokenizer.json": tokenizer.json.encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    bos, eos, pad = (controls[control] for control in named.values())
    return files, {"vocab_size": tokenizer.vocab_size, "bos_id": bos, "eos_ids": (eos,), "pad_id": pad}


def make_tiny_folder(
    path: Path, *, family: Family = "gemma3_text", seed: int = 0, dtype: FloatDtype = "F32", **changes: Any
) -> Path:
    """A complete servable folder in the house chat format: random weights, a tokenizer of about 400 entries.

    `changes` replace fields of the configuration (context_len, hidden_size, num_layers, ...); the vocabulary
    and the special ids are the tokenizer's.
    """
    files, ids = tiny_tokenizer_files()
    config = tiny_config(family, **({"context_len": 1024, **ids} | changes))
    save_checkpoint(path, config, random_tensors(config, seed), dtype=dtype, files=files)
    return path
