"""GGUF: what a decoder becomes in that format, and what is refused. The reader here is the gguf library's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smelt.checkpoint.gguf import Format, PackedTensors, Vocabulary, header_of, write_gguf
from smelt.checkpoint.gguf.header import sliding_period
from smelt.checkpoint.gguf.packed import blocks_of, file_name, unpacked
from smelt.checkpoint.quantized import QuantizedWeight, num_groups
from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.core.errors import UnsupportedError
from smelt.core.quantization import WeightFormat
from tests.tiny import random_tensors, tiny_config, variants

gguf = pytest.importorskip("gguf", reason="the extra train is not installed")

FULL, SLIDE = LayerConfig(), LayerConfig(window=8, rope=1)
QWEN2 = tiny_config("qwen2", hidden_size=64)
GEMMA = tiny_config("gemma3_text")


def drawn(format: WeightFormat, width: int, seed: int) -> QuantizedWeight:
    """Random codes over the format's whole range; scales of 8 bits, as compress.quantize makes them."""
    rng = np.random.default_rng(seed)
    shape = (3, num_groups(format, width))
    scales = (rng.integers(128, 256, shape) * 2.0 ** rng.integers(-24, -8, shape)).astype(np.float32)
    limits = (format.lowest, format.highest + 1)
    codes = rng.integers(*limits, (3, width)).astype(np.int8)
    codes[0, :2] = format.lowest, format.highest
    zeros = None if format.symmetric else rng.integers(*limits, shape).astype(np.int8)
    return QuantizedWeight(format=format, codes=codes, scales=scales, zeros=zeros)


@given(
    bits=st.integers(2, 8),
    group=st.sampled_from([32, 64, None]),
    symmetric=st.booleans(),
    num_blocks=st.sampled_from([2, 4]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_codes_are_kept_to_the_bit(bits: int, group: int | None, symmetric: bool, num_blocks: int, seed: int) -> None:
    weight = drawn(WeightFormat(bits=bits, group_size=group, symmetric=symmetric), 32 * num_blocks, seed)
    found = blocks_of(weight)
    if found is None:  # the one thing that does not fit: a code less its zero point beyond a byte
        assert bits == 8 and not symmetric
        return
    assert found.kept
    assert found.format == ("q4_0" if bits <= 4 and symmetric else found.format)
    np.testing.assert_array_equal(unpacked(found), weight.dequantized())


@pytest.mark.parametrize("fault", ["group of 16", "group of 48", "scale"])
def test_what_no_block_holds_is_not_forced_into_one(fault: str) -> None:
    group = {"group of 16": 16, "group of 48": 48, "scale": 32}[fault]
    weight = drawn(WeightFormat(bits=4, group_size=group), 96, 0)
    if fault == "scale":
        weight.scales[1, 1] = 0.1  # not of float16
    assert blocks_of(weight) is None


def packed_of(config: DecoderConfig, format: Format = "f32", seed: int = 0) -> tuple[dict[str, Any], PackedTensors]:
    tensors = random_tensors(config, seed)
    return tensors, PackedTensors(config, tensors, {}, format=format, header=header_of(config))


def test_rows_of_llama_turn_in_neighbours_as_ours_turn_in_halves() -> None:
    """The scores of two positions under either layout's own rotation are the same: both in float64, by hand."""
    config = tiny_config("llama")
    tensors, packed = packed_of(config)
    x = np.random.default_rng(1).standard_normal((2, config.hidden_size))
    stem, d = "model.layers.1.self_attn.", config.head_dim
    angles = 7 * np.array(config.ropes[0].inv_freq(d))

    def ours(q: NDArray[Any], turn: bool) -> NDArray[Any]:
        if not turn:
            return q
        low, high = q[: d // 2], q[d // 2 :]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin])

    def theirs(q: NDArray[Any], turn: bool) -> NDArray[Any]:
        if not turn:
            return q
        turned = (q[0::2] + 1j * q[1::2]) * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], -1).reshape(-1)

    q, k = (tensors[f"{stem}{which}_proj.weight"].astype(np.float64)[:d] for which in "qk")
    file_q, file_k = (packed[f"blk.1.attn_{which}.weight"].data.astype(np.float64)[:d] for which in "qk")
    sought = ours(q @ x[0], True) @ ours(k @ x[1], False)
    assert theirs(file_q @ x[0], True) @ theirs(file_k @ x[1], False) == pytest.approx(sought, rel=1e-12)
    assert theirs(q @ x[0], True) @ theirs(k @ x[1], False) != pytest.approx(sought, rel=1e-3)
    np.testing.assert_array_equal(packed.meaning(stem + "q_proj.weight"), tensors[stem + "q_proj.weight"])


def test_gains_hold_what_the_reader_leaves_out() -> None:
    """llama.cpp multiplies by the stored gain alone, and queries by head_dim^-1/2: both are made up for."""
    config = dataclasses.replace(GEMMA, attention_scale=0.125)
    tensors, packed = packed_of(config)
    gain = tensors["model.layers.0.self_attn.q_norm.weight"].astype(np.float64) + 1
    np.testing.assert_allclose(packed["blk.0.attn_q_norm.weight"].data, gain * 0.125 * 4, rtol=1e-6)
    norm = tensors["model.norm.weight"].astype(np.float64) + 1
    np.testing.assert_allclose(packed["output_norm.weight"].data, norm, rtol=1e-6)


def test_widths_of_no_whole_blocks_stay_in_f16_and_a_head_in_8_bits() -> None:
    _, packed = packed_of(tiny_config("llama"), "q4_0")  # hidden 48, attention 64, MLP 64
    assert packed["blk.0.attn_q.weight"].format == "f16"
    assert packed["blk.0.attn_output.weight"].format == "q4_0"
    _, packed = packed_of(QWEN2, "q4_0")
    assert (packed["output.weight"].format, packed["token_embd.weight"].format) == ("q8_0", "q4_0")
    _, packed = packed_of(dataclasses.replace(QWEN2, tie_embeddings=True), "q4_0")
    assert packed["token_embd.weight"].format == "q8_0"


def test_codes_in_8_bits_become_4_when_4_are_asked_for() -> None:
    config, name = QWEN2, "model.layers.0.mlp.down_proj.weight"
    weight = drawn(WeightFormat(bits=8, group_size=32), 64, 0)
    weight = dataclasses.replace(
        weight, codes=np.resize(weight.codes, (64, 64)), scales=np.resize(weight.scales, (64, 2))
    )
    tensors = random_tensors(config) | {name: weight.dequantized()}
    for format, kept in (("q8_0", True), ("q4_0", False)):
        packed = PackedTensors(config, tensors, {name: weight}, format=format, header=header_of(config))  # type: ignore[arg-type]
        found = packed[file_name(name, config)]
        assert (found.format, found.kept) == (format, kept)


@pytest.mark.parametrize(
    ("kinds", "period"),
    [("sssssgssss", 6), ("ss", 6), ("sgs", 2), ("ssgssg", 3), ("gg", 1), ("gss", None), ("sggs", None)],
)
def test_the_period_of_windows(kinds: str, period: int | None) -> None:
    assert sliding_period(tuple(SLIDE if kind == "s" else FULL for kind in kinds)) == period


REFUSED = {
    "activation = silu": tiny_config("llama", activation="gelu_tanh"),
    "o_bias = False": tiny_config("qwen3", o_bias=True),
    "qkv_bias = False": dataclasses.replace(GEMMA, qkv_bias=True),
    "num_heads x head_dim": tiny_config("qwen2"),
    "found gss": dataclasses.replace(GEMMA, layers=(FULL, SLIDE, SLIDE)),
    "by band": tiny_config("qwen3", ropes=variants()["llama-llama3"].ropes),
    "usual attention factor": dataclasses.replace(variants()["qwen3-yarn-biases"], o_bias=False),
    "of sliding layers": dataclasses.replace(GEMMA, ropes=(GEMMA.ropes[0], RopeConfig(scaling="linear", factor=2.0))),
    "variants of ours": tiny_config("llama", layers=(LayerConfig(), LayerConfig(weights=0))),
}


@pytest.mark.parametrize("why", list(REFUSED))
def test_what_llama_cpp_does_not_compute_is_refused_by_name(why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        header_of(REFUSED[why])


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_windows_that_are_not_known_shorten_the_context(family: Any) -> None:
    header = header_of(tiny_config(family, layers=(LayerConfig(window=8),) * 2))
    assert header.keys["context_length"] == header.context_len == 8
    assert "cut from 256 to 8" in header.notes[0]


def test_a_file_says_what_it_was_given(tmp_path: Path) -> None:
    config = tiny_config("llama", ropes=variants()["llama-llama3"].ropes)
    tensors, packed = packed_of(config, "f16")
    tokens = tuple(f"t{i}" for i in range(config.vocab_size))
    vocabulary = Vocabulary(
        model="gpt2",
        pre="gpt-2",
        tokens=tokens,
        kinds=("control",) + ("normal",) * (config.vocab_size - 1),
        merges=("t 1",),
        special_ids={"bos": 0, "eos": 1},
        add_bos=True,
        chat_template="{{ messages }}",
    )
    written = write_gguf(tmp_path / "m.gguf", header_of(config), packed, vocabulary, name="small", format="f16")
    assert written.matrices == {"f16": 23} and written.kept == 0
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert (values["general.architecture"], values["general.name"]) == ("llama", "small")
    assert values["llama.attention.key_length"] == 16
    assert values["tokenizer.ggml.tokens"] == list(tokens)
    assert values["tokenizer.ggml.token_type"][:2] == [3, 1]
    assert (values["tokenizer.ggml.bos_token_id"], values["tokenizer.ggml.add_bos_token"]) == (0, True)
    assert values["tokenizer.chat_template"] == "{{ messages }}"
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert set(found) == {*packed, "rope_freqs.weight"}
    down = found["blk.2.ffn_down.weight"].data.astype(np.float32)
    np.testing.assert_array_equal(down, tensors["model.layers.2.mlp.down_proj.weight"].astype(np.float16))
    turned = np.array(RopeConfig(base=500.0).inv_freq(16)) / found["rope_freqs.weight"].data
    np.testing.assert_allclose(turned, config.ropes[0].inv_freq(16), rtol=1e-6)
