"""The native step against the torch decoder that is proven equal to transformers: every family, every feature."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.engine.torch_runner import TorchRunner
from smelt.native import NativeRunner
from tests.native.batches import Chunk, logits_by_chunks, make_batch, prompt
from tests.native.test_kernels import ISAS
from tests.tiny import random_tensors, tiny_config, variants

torch = pytest.importorskip("torch", reason="the oracle is the torch decoder")
VARIANTS = variants()
F32 = NDArray[np.float32]


def oracle_logits(config: DecoderConfig, tensors: dict[str, F32], ids: list[int]) -> F32:
    """Logits of every token, by the torch decoder without a cache."""
    from smelt.model.decoder import Decoder

    decoder = Decoder.from_tensors(config, tensors).eval()
    with torch.inference_mode():
        logits: F32 = decoder.logits(decoder.hidden(torch.tensor([ids]))[0]).numpy()
    return logits


def mean_kl(want: F32, found: F32) -> float:
    """Mean over rows of KL(want || found), in nats."""

    def log_softmax(x: F32) -> NDArray[np.float64]:
        shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        return result

    p, q = log_softmax(want), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", VARIANTS)
def test_float_logits_are_the_decoders(name: str, isa: str) -> None:
    """Prefill of 50, then single tokens, then a chunk, past the window's edge and over several blocks."""
    config = VARIANTS[name]
    tensors, ids = random_tensors(config, 1), prompt(config, 72)
    runner = NativeRunner(config, tensors, weights="fp32", num_blocks=8, num_threads=2, isa=isa)
    found = logits_by_chunks(runner, ids, [50, 1, 1, 1, 16], table=[6, 1, 7, 0, 3])
    want = oracle_logits(config, tensors, ids)
    assert np.abs(found - want).max() < 1e-3 * max(1.0, np.abs(want).max() / 10)


@pytest.mark.parametrize("name", VARIANTS)
def test_8bit_logits_are_close(name: str) -> None:
    """Random weights quantise worse than trained ones; a wrong scale or row would be off by whole nats."""
    config = VARIANTS[name]
    tensors, ids = random_tensors(config, 1), prompt(config, 40)
    runner = NativeRunner(config, tensors, weights="w8", num_blocks=8, num_threads=1)
    assert mean_kl(oracle_logits(config, tensors, ids), logits_by_chunks(runner, ids, [40])) < 6e-3


@pytest.mark.parametrize("weights", ["fp32", "w8"])
@pytest.mark.parametrize("name", ["llama-tied-biases", "gemma3"])
def test_instruction_sets_agree(name: str, weights: Literal["fp32", "w8"]) -> None:
    """All with AVX2 compute the same bits. Without, only rounding differs; 8-bit codes can then move by one."""
    config = VARIANTS[name]
    tensors, ids = random_tensors(config, 2), prompt(config, 40)
    found = {}
    for isa in ISAS:
        runner = NativeRunner(config, tensors, weights=weights, num_blocks=8, num_threads=1, isa=isa)
        found[isa] = logits_by_chunks(runner, ids, [40])
    for isa in ISAS:
        if "avx2" in ISAS and isa != "portable":
            assert np.array_equal(found[isa], found["avx2"]), isa
        assert mean_kl(found["portable"], found[isa]) < (1e-7 if weights == "fp32" else 1e-3), isa


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_odd_shapes(data: st.DataObject) -> None:
    """Sizes that fit no vector, group or stripe: everything is padded, nothing read or written beside it."""

    def size(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kv_heads = size(1, 3)
    head_dim = 2 * size(1, 13)
    window = data.draw(st.one_of(st.none(), st.integers(1, 20)))
    config = tiny_config(
        data.draw(st.sampled_from(["qwen3", "gemma3_text"])),
        hidden_size=size(1, 70),
        intermediate_size=size(1, 70),
        vocab_size=size(2, 70),
        num_kv_heads=kv_heads,
        num_heads=kv_heads * size(1, 3),
        head_dim=head_dim,
        layers=(LayerConfig(window=window), LayerConfig()),
        tie_embeddings=data.draw(st.booleans()),
        mlp_bias=data.draw(st.booleans()),
        qkv_bias=data.draw(st.booleans()),
        attention_scale=head_dim**-0.5,
    )
    tensors, ids = random_tensors(config, size(0, 1000)), prompt(config, size(1, 40))
    block_size = data.draw(st.sampled_from([16, 32, 64]))
    runner = NativeRunner(config, tensors, weights="fp32", num_blocks=4, block_size=block_size, num_threads=size(1, 3))
    found = logits_by_chunks(runner, ids, [size(1, 40)], table=[2, 0, 3])
    want = oracle_logits(config, tensors, ids)
    assert np.abs(found - want).max() < 1e-3 * max(1.0, np.abs(want).max() / 10)


def test_many_query_heads_on_one_key_head() -> None:
    """More query heads than one attention tile has rows."""
    config = tiny_config("llama", num_heads=40, num_kv_heads=1, head_dim=8)
    tensors, ids = random_tensors(config), prompt(config, 35)
    runner = NativeRunner(config, tensors, weights="fp32", num_blocks=4, num_threads=2)
    assert np.abs(logits_by_chunks(runner, ids, [20, 1]) - oracle_logits(config, tensors, ids)).max() < 1e-3


def test_a_prompt_longer_than_one_pass() -> None:
    """Passes of a step are bounded; what the second computes rests on keys the first has written."""
    config = tiny_config("gemma3_text", context_len=640)
    tensors, ids = random_tensors(config), prompt(config, 600)
    runner = NativeRunner(config, tensors, weights="fp32", num_blocks=40, num_threads=2)
    assert np.abs(logits_by_chunks(runner, ids, [600]) - oracle_logits(config, tensors, ids)).max() < 1e-3


def test_far_positions_turn_as_the_decoder_does() -> None:
    """Angles are products in float32 there; at position 200,000 a double is off by a hundredth of a radian.

    A window of 4 makes the last tokens independent of all that was never computed, so early blocks may be one block.
    """
    far, length = 200_000, 16
    config = tiny_config("llama", context_len=far + length, ropes=(RopeConfig(base=10.0),), num_layers=1)
    config = dataclasses.replace(config, layers=(LayerConfig(window=4),))
    tensors, ids = random_tensors(config), prompt(config, length)
    chunk = Chunk(ids=ids, first=far, table=[*[0] * (far // 16), 1], score=True, top_k=config.vocab_size)
    batch = make_batch([chunk], config.vocab_size)
    native = NativeRunner(config, tensors, weights="fp32", num_blocks=2, num_threads=1).step(batch)
    oracle = TorchRunner(config, tensors, num_blocks=2).step(batch)
    found, want = native.scored_top_logprobs[4:], oracle.scored_top_logprobs[4:]
    assert np.abs(found - want).max() < 2e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_whole_steps_are_the_torch_runners(family: Any) -> None:
    """Two sequences in one batch, one scored and one drawn, then a second step: same tokens, same log-probabilities."""
    config = tiny_config(family)
    tensors = random_tensors(config, 3)
    native = NativeRunner(config, tensors, weights="fp32", num_blocks=16, num_threads=2)
    oracle = TorchRunner(config, tensors, num_blocks=16)
    one, two = prompt(config, 30, 1), prompt(config, 21, 2)
    first = [
        Chunk(ids=one, table=[3, 5], score=True, sample=True, temperature=0.8, top_p=0.9, seed=7, top_k=3),
        Chunk(ids=two, table=[9, 2], sample=True, top_k=2, bias={4: 2.5}),
    ]
    for _ in range(2):
        batch = make_batch(first, config.vocab_size)
        found, want = native.step(batch), oracle.step(batch)
        for field in ("token_ids", "top_ids", "scored_top_ids"):
            assert np.array_equal(getattr(found, field), getattr(want, field)), field
        for field in ("logprobs", "top_logprobs", "scored_logprobs", "scored_top_logprobs"):
            assert getattr(found, field).shape == getattr(want, field).shape, field
            np.testing.assert_allclose(getattr(found, field), getattr(want, field), atol=1e-3)
        drawn = found.token_ids
        first = [
            Chunk(ids=[int(drawn[0])], first=30, table=[3, 5], sample=True, temperature=1.0, seed=7, draw=1, top_k=1),
            Chunk(ids=[int(drawn[1])], first=21, table=[9, 2], sample=True, counts={int(drawn[1]): 1}, presence=1.0),
        ]
