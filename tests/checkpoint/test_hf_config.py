"""config.json to DecoderConfig and back: transformers' spellings old and new, and refusals by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from smelt.checkpoint.hf_config import from_hf, to_hf
from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.core.errors import CheckpointError, UnsupportedError
from tests.tiny import tiny_config, variants

CLASSES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3_text": Gemma3TextConfig,
}
LLAMA = to_hf(tiny_config("llama"))
GEMMA = to_hf(tiny_config("gemma3_text"))
QWEN = to_hf(tiny_config("qwen2"))


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize("name", sorted(variants()))
def test_round_trip(name: str) -> None:
    config = variants()[name]
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize("name", sorted(variants()))
def test_what_transformers_makes_of_our_config_and_saves_again_reads_back_the_same(name: str) -> None:
    """Our older spelling through transformers' classes comes back in the newer one, with every default written out."""
    config = variants()[name]
    theirs = CLASSES[config.family].from_dict(to_hf(config))
    for use_diff in (True, False):
        saved = json.loads(theirs.to_json_string(use_diff=use_diff))
        assert "rope_parameters" in saved
        assert from_hf(saved) == config


@pytest.mark.parametrize("family", sorted(CLASSES))
def test_transformers_own_defaults_are_read(family: str) -> None:
    sizes = {"num_hidden_layers": 4, "vocab_size": 300_000}
    config = from_hf(json.loads(CLASSES[family](**sizes).to_json_string()))
    assert config.num_layers == 4 and config.hidden_size == CLASSES[family]().hidden_size


# Keys as they stand in well-known folders, shortened to what differs from the plain case.
LLAMA_3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def test_known_folders_older_spellings() -> None:
    llama = from_hf({**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA_3_ROPE, "max_position_embeddings": 131072})
    assert llama.ropes == (RopeConfig(base=500000.0, scaling="llama3", factor=8.0, original_max_position=8192),)
    linear = from_hf({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}})
    assert linear.ropes[0] == RopeConfig(base=10000.0, scaling="linear", factor=2.0)
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert from_hf({**QWEN, "rope_scaling": yarn, "rope_theta": 1e6}).ropes[0].original_max_position == 32768
    smol = {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1, "transformers.js_config": {"a": 1}}
    assert from_hf({**LLAMA, **smol}) == from_hf(LLAMA)


def test_gemma_older_spellings() -> None:
    plain = without(GEMMA, "layer_types", "rope_theta", "rope_local_base_freq", "rope_scaling")
    plain |= {"num_hidden_layers": 7, "sliding_window_pattern": 3, "hidden_act": "gelu_pytorch_tanh"}
    config = from_hf(plain)
    assert [layer.window is None for layer in config.layers] == [False, False, True, False, False, True, False]
    assert [layer.rope for layer in config.layers] == [1, 1, 0, 1, 1, 0, 1]
    assert [rope.base for rope in config.ropes] == [1e6, 1e4], "Gemma's own defaults"
    scaled = from_hf({**plain, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}})
    assert scaled.ropes == (RopeConfig(base=1e6, scaling="linear", factor=8.0), RopeConfig(base=1e4))
    saved_with_both = {**without(plain, "sliding_window_pattern"), "_sliding_window_pattern": 3}
    assert from_hf(saved_with_both).layers == config.layers


def test_qwen_windows() -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    older = from_hf({**without(QWEN, "layer_types"), **sliding})
    assert [layer.window for layer in older.layers] == [None, 16, 16]
    unused = from_hf({**without(QWEN, "layer_types"), "sliding_window": 16, "max_window_layers": 1})
    assert [layer.window for layer in unused.layers] == [None] * 3, "a window that is not used"
    with pytest.raises(CheckpointError, match="use_sliding_window"):
        from_hf({**QWEN, "layer_types": ["sliding_attention"] * 3, "sliding_window": 16})


def test_mistral_says_null_for_no_window_and_nothing_for_the_default() -> None:
    mistral = to_hf(tiny_config("mistral"))
    assert {layer.window for layer in from_hf({**mistral, "sliding_window": None}).layers} == {None}
    assert {layer.window for layer in from_hf(without(mistral, "sliding_window")).layers} == {4096}


def test_ids_of_generation_config_win() -> None:
    assert from_hf(LLAMA, {"eos_token_id": [5, 7, 5], "temperature": 0.6}).eos_ids == (5, 7)
    assert from_hf(LLAMA, {"eos_token_id": 9}).eos_ids == (9,)
    assert from_hf(LLAMA, {"max_length": 9}).eos_ids == (1,)
    assert from_hf({**LLAMA, "eos_token_id": None, "pad_token_id": -1}).eos_ids == ()
    with pytest.raises(CheckpointError, match="eos_token_id must be ids below vocab_size = 96"):
        from_hf(LLAMA, {"eos_token_id": [5, 96]})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "model_type = 'mamba'"),
        ({"model_type": "gemma3"}, "images are not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, "auto_map.*own Python code"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.*quantized weights"),
        ({"num_local_experts": 8}, "mixtures of experts"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type = 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}}, "mrope_section"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "beta = 1"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"type": "default"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
        ({"rope_interleaved": True}, "rope_interleaved = True"),
        ({"sliding_window": 8}, "sliding_window = 8"),
        ({"pretraining_tp": 2}, "pretraining_tp = 2"),
        ({"use_mrope": True}, "use_mrope"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"brand_new_trick": 1}, "brand_new_trick = 1"),
        ({"brand_new_switch": False}, "brand_new_switch = False"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        from_hf({**LLAMA, **change})


def test_gemma_and_mistral_refusals() -> None:
    for change, named in (
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention"),
        ({"rope_parameters": {"full_attention": {}, "chunked_attention": {}}}, "chunked_attention"),
    ):
        with pytest.raises(UnsupportedError, match=named):
            from_hf({**GEMMA, "rope_scaling": None, **change})
    with pytest.raises(UnsupportedError, match="attention_bias = True"):
        from_hf({**to_hf(tiny_config("mistral")), "attention_bias": True})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"model_type": None}, "model_type is missing"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"hidden_size": 48.0}, "hidden_size"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"head_dim": None, "num_attention_heads": 5, "num_key_value_heads": 5}, "multiple of num_attention_heads"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor must be a number"),
        ({"rope_scaling": {**LLAMA_3_ROPE, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}, "rope_scaling": None}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1e308}}, "no finite frequencies"),
        ({"rope_theta": 1.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "no finite frequencies"),
        ({"eos_token_id": 96}, "eos_token_id"),
        ({"bos_token_id": 96}, "bos_token_id"),
    ],
)
def test_what_is_malformed_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        from_hf({**LLAMA, **change})


@pytest.mark.parametrize("key", ["head_dim", "num_key_value_heads", "query_pre_attn_scalar"])
def test_gemma_sizes_are_not_guessed(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        from_hf(without(GEMMA, key))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (tiny_config("llama", qk_norm=True), "qk_norm"),
        (tiny_config("llama", layers=(LayerConfig(window=4),)), "window"),
        (tiny_config("qwen2", o_bias=True), "o_bias"),
        (dataclasses.replace(tiny_config("gemma3_text"), embedding_scale=2.0), "embedding_scale"),
        (tiny_config("llama", eos_ids=(500,)), "out of range"),
    ],
)
def test_a_decoder_its_family_cannot_express_is_not_saved_as_something_else(config: DecoderConfig, named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        to_hf(config)
