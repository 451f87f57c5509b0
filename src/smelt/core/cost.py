"""What a decoder costs before it exists: parameters, bytes, operations, keys and values, predicted speed.

Pure arithmetic on a shape. An operation (FLOP) is a multiplication or an addition, so a multiply-add counts two. Norms,
activations and softmax are left out: under two per cent from hidden widths of a hundred on. Seconds come from rates
that somebody measured (`Rates`), never from a processor's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from smelt.core.decoder import DecoderConfig
from smelt.core.quantization import Scheme, WeightFormat

Floats = Literal["fp32", "bf16", "fp16"]
_FLOAT_BYTES: dict[Floats, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

NATIVE_W8 = Scheme(weights=WeightFormat(bits=8, group_size=32), head=WeightFormat(bits=8, group_size=32))
"""What the native core makes of a model at load (docs/native.md): int8 in groups of 32, embedding and head included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Counts. matrices: inside the layers. embeddings: tables and a head of its own. vectors: norms and biases."""

    matrices: int
    embeddings: int
    vectors: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.matrices + self.embeddings + self.vectors


def parameters(config: DecoderConfig) -> Parameters:
    """Counted by kind; tied embeddings and whatever else is stored once count once."""
    counts = {"matrices": 0, "embeddings": 0, "vectors": 0}
    for name, shape in config.tensor_shapes().items():
        counts[_kind(name, shape)] += math.prod(shape)
    return Parameters(**counts)


def _kind(name: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "vectors"
    return "matrices" if name.startswith("model.layers.") else "embeddings"


def weight_bytes(config: DecoderConfig, stored: Floats | Scheme) -> int:
    """Bytes of the weights in a file, or in memory; headers and padding left out.

    Under a Scheme vectors, and the embeddings where it leaves them alone, take 16 bits a number.
    """
    if not isinstance(stored, Scheme):
        return parameters(config).total * _FLOAT_BYTES[stored]
    bits = 0.0
    for name, shape in config.tensor_shapes().items():
        kind = _kind(name, shape)
        chosen = {"matrices": stored.weights, "embeddings": stored.head, "vectors": None}[kind]
        bits += math.prod(shape) * (16.0 if chosen is None else chosen.bits_per_weight(shape[-1]))
    return math.ceil(bits / 8)


def visible(window: int | None, position: int) -> int:
    """Tokens that the token at `position` (from 0) sees in a layer."""
    return position + 1 if window is None else min(position + 1, window)


def visible_sum(window: int | None, num_tokens: int) -> int:
    """`visible` summed over positions 0 .. num_tokens - 1."""
    ramp = num_tokens if window is None else min(num_tokens, window)
    return ramp * (ramp + 1) // 2 + (num_tokens - ramp) * ramp


def matrix_macs(config: DecoderConfig) -> int:
    """Multiply-adds of one token in the layers' matrices; a matrix that several layers use works in each."""
    per_layer = (
        2 * config.hidden_size * config.head_dim * (config.num_heads + config.num_kv_heads)
        + 3 * config.hidden_size * config.intermediate_size
    )
    beside = 0
    if any(layer.residue_rank or layer.linear is not None for layer in config.layers):
        own = [shape for name, shape in config.tensor_shapes().items() if "_residue." in name or ".mixer." in name]
        beside = sum(math.prod(shape) for shape in own if len(shape) > 1)
    return per_layer * config.num_layers + beside


def head_macs(config: DecoderConfig) -> int:
    """Multiply-adds of one token's logits."""
    return config.vocab_size * config.hidden_size


def attention_macs(config: DecoderConfig, position: int) -> int:
    """Multiply-adds of the token at `position` with keys, values and states, windows honoured."""
    per_token = 2 * config.num_heads * config.head_dim
    seen = sum(visible(window, position) for window in _windows(config))
    return per_token * seen + _state_macs(config)


def _windows(config: DecoderConfig) -> list[int | None]:
    """Of every layer that attends to keys; of a hybrid one that of its softmax part."""
    found = []
    for layer in config.layers:
        if layer.linear is None:
            found.append(layer.window)
        elif layer.linear.kind == "hybrid":
            found.append(layer.linear.window)
    return found


def _state_macs(config: DecoderConfig) -> int:
    """Multiply-adds of one token with the states of linear layers: read by every head, brought up to date by each."""
    total = 0
    for linear in (layer.linear for layer in config.layers if layer.linear is not None):
        if linear.kind == "hybrid":
            total += 2 * linear.feature_dim * (config.head_dim + 1) * (config.num_heads + config.num_kv_heads)
        else:
            total += linear.feature_dim * config.head_dim * (config.num_heads + 3 * config.num_kv_heads)
    return total


def decode_flops(config: DecoderConfig, position: int) -> int:
    """Operations of one token at `position`, its logits included."""
    return 2 * (matrix_macs(config) + head_macs(config) + attention_macs(config, position))


def prefill_flops(config: DecoderConfig, num_tokens: int) -> int:
    """Operations of a prompt from position 0 on; logits of the last token only, as an engine needs them."""
    return 2 * (matrix_macs(config) * num_tokens + _attention_sum(config, num_tokens) + head_macs(config))


def training_flops(config: DecoderConfig, row_len: int) -> float:
    """Operations a token, in rows of one document of `row_len` tokens: three times a forward pass with every logit.

    The backward pass is two forward passes. The usual 6 N leaves attention out and counts the embedding's look-up.
    """
    forward = 2 * (matrix_macs(config) + head_macs(config) + _attention_sum(config, row_len) / row_len)
    return 3 * forward


def _attention_sum(config: DecoderConfig, num_tokens: int) -> int:
    seen = sum(visible_sum(window, num_tokens) for window in _windows(config))
    return 2 * config.num_heads * config.head_dim * seen + num_tokens * _state_macs(config)


def kv_bytes(config: DecoderConfig, context_len: int, *, item_bytes: int = 4, windowed: bool = False) -> int:
    """Bytes of keys and values of one sequence of `context_len` tokens.

    windowed: a sliding layer holds its window only. The engine of today holds every token in every layer, in float32:
    the default here, and what memory must be planned for. Linear layers hold a state, whatever the context.
    """
    tokens = sum(
        context_len if layer.window is None or not windowed else min(context_len, layer.window)
        for layer in config.layers
        if layer.linear is None
    )
    return 2 * item_bytes * config.num_kv_heads * config.head_dim * tokens + config.state_bytes * item_bytes // 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a machine measurably does, all threads together.

    read_gb_s: reads of as many bytes as the weights have (small ones lie in a cache). multiply_gops: 8-bit products,
    two operations a multiply-add. attention_gflops: scores and sums over keys and values. step_s: what a step costs
    beside its arithmetic.
    """

    read_gb_s: float
    multiply_gops: float
    attention_gflops: float
    step_s: float


def decode_seconds(config: DecoderConfig, rates: Rates, position: int) -> float:
    """Predicted seconds of one token for one user, weights as the native core holds them.

    Weights are read, multiplied, and nothing of that overlaps: what one core does when its prefetcher is the limit.
    """
    read_s = weight_bytes(config, NATIVE_W8) / (rates.read_gb_s * 1e9)
    multiply_s = 2 * (matrix_macs(config) + head_macs(config)) / (rates.multiply_gops * 1e9)
    attend_s = 2 * attention_macs(config, position) / (rates.attention_gflops * 1e9)
    return rates.step_s + read_s + multiply_s + attend_s


def prefill_seconds(config: DecoderConfig, rates: Rates, num_tokens: int) -> float:
    """Predicted seconds from a prompt of `num_tokens` to its first token."""
    read_s = weight_bytes(config, NATIVE_W8) / (rates.read_gb_s * 1e9)
    multiply_s = 2 * (matrix_macs(config) * num_tokens + head_macs(config)) / (rates.multiply_gops * 1e9)
    attend_s = 2 * _attention_sum(config, num_tokens) / (rates.attention_gflops * 1e9)
    return rates.step_s + read_s + multiply_s + attend_s
