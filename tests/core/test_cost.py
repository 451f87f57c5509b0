"""Costs of a shape, each against a slower way to know it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from smelt.core import cost
from smelt.core.cost import NATIVE_W8, Rates
from smelt.core.decoder import DecoderConfig, LayerConfig, LinearConfig
from smelt.core.quantization import Scheme, WeightFormat
from smelt.model.cache import KVCache
from smelt.model.decoder import Decoder
from tests.tiny import random_tensors, tiny_config, variants

NAMES = sorted(variants())


def seen_by_hand(config: DecoderConfig, position: int) -> int:
    """Pairs of a query at `position` and a key it sees, over all layers."""
    return sum(
        sum(layer.window is None or position - key < layer.window for key in range(position + 1))
        for layer in config.layers
    )


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_module(name: str) -> None:
    config = variants()[name]
    counted, model = cost.parameters(config), Decoder(config)
    assert counted.total == sum(p.numel() for p in model.parameters()) == config.num_parameters
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    assert counted.matrices == sum(p.numel() for p in inside)
    assert counted.vectors == sum(p.numel() for p in model.parameters() if p.ndim == 1)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_matrix_operations_are_those_torch_counts(name: str) -> None:
    """Its counter sees every product; scores and sums over keys are taken out by their own, known, number."""
    config, num_tokens = variants()[name], 5
    model = Decoder.from_tensors(config, random_tensors(config)).eval()
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(1, num_tokens, dtype=torch.long))
    products = sum(
        count for kind, count in counter.get_flop_counts()["Global"].items() if "dot_product" not in str(kind)
    )
    assert products == 2 * num_tokens * (cost.matrix_macs(config) + cost.head_macs(config))


@given(position=st.integers(0, 60), name=st.sampled_from(NAMES))
@settings(max_examples=40, deadline=None)
def test_operations_at_a_position_and_their_sum_over_a_prompt(position: int, name: str) -> None:
    config = variants()[name]
    pairs = seen_by_hand(config, position)
    assert cost.attention_macs(config, position) == 2 * config.num_heads * config.head_dim * pairs
    layers, head = cost.matrix_macs(config), cost.head_macs(config)
    assert cost.decode_flops(config, position) == 2 * (layers + head + cost.attention_macs(config, position))
    one_by_one = sum(2 * (layers + cost.attention_macs(config, p)) for p in range(position + 1))
    assert cost.prefill_flops(config, position + 1) == one_by_one + 2 * head
    forward = sum(cost.decode_flops(config, p) for p in range(position + 1)) / (position + 1)
    assert cost.training_flops(config, position + 1) == pytest.approx(3 * forward)


@pytest.mark.parametrize("name", ["llama-linear", "gemma3", "qwen2-yarn-window"])
def test_keys_and_values_are_what_a_cache_holds(name: str) -> None:
    config = variants()[name]
    cache = KVCache(config, capacity=40)
    assert cost.kv_bytes(config, 40) == cache._data.numel() * 4 == 40 * config.kv_bytes_per_token
    windowed = sum(min(40, layer.window or 40) for layer in config.layers) * 2 * 2 * config.num_kv_heads * 16
    assert cost.kv_bytes(config, 40, item_bytes=2, windowed=True) == windowed


def test_bytes_of_every_storage() -> None:
    config = tiny_config("llama", tie_embeddings=True)
    count = cost.parameters(config)
    assert cost.weight_bytes(config, "fp32") == 4 * count.total
    assert cost.weight_bytes(config, "bf16") == cost.weight_bytes(config, "fp16") == 2 * count.total
    assert cost.weight_bytes(config, NATIVE_W8) == pytest.approx(
        (count.matrices + count.embeddings) * 8.5 / 8 + 2 * count.vectors,
        rel=0.02,  # rows of 48 in groups of 32
    )
    int4 = Scheme(weights=WeightFormat(bits=4, group_size=16))
    assert cost.weight_bytes(config, int4) == count.matrices * 5 // 8 + 2 * (count.embeddings + count.vectors)
    rows = sum(math.prod(s[:-1]) for n, s in config.tensor_shapes().items() if n.endswith("proj.weight"))
    int8 = Scheme(weights=WeightFormat(bits=8))
    assert cost.weight_bytes(config, int8) == count.matrices + 2 * (rows + count.embeddings + count.vectors)


def test_a_shared_matrix_is_stored_once_and_works_in_every_layer() -> None:
    plain = tiny_config("llama", num_layers=2)
    shared = replace(plain, layers=(LayerConfig(), LayerConfig(weights=0)))
    assert cost.matrix_macs(shared) == cost.matrix_macs(plain)
    assert cost.parameters(shared).matrices == cost.parameters(plain).matrices // 2
    residue = replace(plain, layers=(LayerConfig(), LayerConfig(weights=0, residue_rank=2)))
    extra = sum(math.prod(s) for n, s in residue.tensor_shapes().items() if "_residue." in n)
    assert cost.matrix_macs(residue) == cost.matrix_macs(plain) + extra > cost.matrix_macs(plain)


@pytest.mark.parametrize("kind", ["hybrid", "gated delta"])
@torch.no_grad()
def test_a_linear_layer_costs_the_same_at_every_length(kind: Literal["hybrid", "gated delta"]) -> None:
    """Behind the window: as many operations and bytes, far out as near; products are those torch counts."""
    linear = LinearConfig(kind=kind, window=5, feature_dim=6)
    config = tiny_config("llama", layers=(LayerConfig(linear=linear),) * 2)
    assert cost.attention_macs(config, 4) == cost.attention_macs(config, 4000)
    assert cost.kv_bytes(config, 40) == cost.kv_bytes(config, 4000) == config.state_bytes
    assert cost.kv_bytes(config, 40, item_bytes=2) == config.state_bytes // 2
    one_by_one = sum(cost.decode_flops(config, p) - 2 * cost.head_macs(config) for p in range(20))
    assert cost.prefill_flops(config, 20) == one_by_one + 2 * cost.head_macs(config)
    model, cache = Decoder.from_tensors(config, random_tensors(config)), KVCache(config)
    model(torch.ones(1, 9, dtype=torch.long), cache=cache)
    assert cache.state_bytes == config.state_bytes
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(1, 1, dtype=torch.long), cache=cache)
    # Sums and outer products are no matrix products: z and its token, or decay and write of S.
    uncounted = 2 * config.num_kv_heads * (2 * 6 if kind == "hybrid" else 2 * 6 * config.head_dim)
    assert counter.get_total_flops() == cost.decode_flops(config, 9) - 2 * uncounted


def test_seconds_follow_from_the_rates() -> None:
    """A machine that only reads, only multiplies, only attends, only waits."""
    config = tiny_config("gemma3_text")
    endless, far = 1e30, 30
    only = Rates(read_gb_s=endless, multiply_gops=endless, attention_gflops=endless, step_s=0.0)
    work = 2 * (cost.matrix_macs(config) + cost.head_macs(config))
    reading, waiting = replace(only, read_gb_s=2.0), replace(only, step_s=0.5)
    assert cost.decode_seconds(config, reading, far) == pytest.approx(cost.weight_bytes(config, NATIVE_W8) / 2e9)
    assert cost.decode_seconds(config, replace(only, multiply_gops=3.0), far) == pytest.approx(work / 3e9)
    attends = replace(only, attention_gflops=4.0)
    assert cost.decode_seconds(config, attends, far) == pytest.approx(2 * cost.attention_macs(config, far) / 4e9)
    assert cost.decode_seconds(config, waiting, far) == pytest.approx(0.5)
    every = Rates(read_gb_s=2.0, multiply_gops=3.0, attention_gflops=3.0, step_s=0.0)
    flops_s = cost.prefill_flops(config, 40) / 3e9
    assert cost.prefill_seconds(config, every, 40) == pytest.approx(
        flops_s + cost.weight_bytes(config, NATIVE_W8) / 2e9
    )
