"""config.json of a Hugging Face folder to DecoderConfig, and back.

The rule: a key is read, or known not to change what the model computes, or refused by name. Nothing is guessed:
sizes must be written down, and a key nobody here has heard of could change the arithmetic, so it is refused
unless its value is null. Defaults for absent keys are those of transformers and only where its own saved
configs may lack the key. docs/checkpoint.md lists the three groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from smelt.checkpoint.config_reader import ConfigReader
from smelt.checkpoint.hf_keys import HARMLESS, REASONS
from smelt.checkpoint.hf_layers import read_layers, read_variants, write_variants
from smelt.checkpoint.hf_rope import check_ropes, read_gemma_ropes, read_ropes, write_ropes
from smelt.core.decoder import DecoderConfig, Family
from smelt.core.errors import CheckpointError, UnsupportedError
from smelt.core.messages import Privilege

ARCHITECTURES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
OURS = "smelt_"  # before model_type where no other reader computes the model: one that ignored a key would be wrong
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_SIZE_LIMIT = 1 << 24  # widths and vocabularies; refuses what could only be an attack on memory


def from_hf(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> DecoderConfig:
    """The decoder that config.json describes; `generation` is generation_config.json, whose eos ids win.

    Raises CheckpointError when a value is missing or malformed, UnsupportedError, naming key and value, when the
    folder asks for something smelt does not compute.
    """
    reader = ConfigReader(config)
    family, ours = _family(reader)
    _refuse_first(reader)
    hidden = reader.whole("hidden_size", at_most=_SIZE_LIMIT)
    num_heads = reader.whole("num_attention_heads", at_most=_SIZE_LIMIT)
    context_len = reader.whole("max_position_embeddings")
    vocab_size = reader.whole("vocab_size", at_most=_SIZE_LIMIT)
    attention_bias = _attention_bias(reader, family)
    gemma = family == "gemma3_text"
    head_dim = _head_dim(reader, family, hidden, num_heads)
    query_scalar = reader.number("query_pre_attn_scalar") if gemma else float(head_dim)
    layers = read_layers(reader, family)
    num_privileges = 0
    if ours:
        layers = read_variants(reader, layers)
        if reader.has("num_privileges") or all(layer.plain for layer in layers):  # what else would be ours
            num_privileges = reader.whole("num_privileges", at_least=len(Privilege), at_most=256)
    decoder = DecoderConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=reader.whole("intermediate_size", at_most=_SIZE_LIMIT),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(reader, family, num_heads),
        head_dim=head_dim,
        layers=layers,
        ropes=read_gemma_ropes(reader, context_len) if gemma else read_ropes(reader, context_len),
        context_len=context_len,
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        norm_offset=1.0 if gemma else 0.0,
        activation=_activation(reader, gemma),
        qkv_bias=attention_bias or family == "qwen2",
        o_bias=attention_bias,
        mlp_bias=reader.flag("mlp_bias", False) if family == "llama" else False,
        qk_norm=family in ("qwen3", "gemma3_text"),
        post_norms=gemma,
        tie_embeddings=reader.flag("tie_word_embeddings", gemma),
        embedding_scale=hidden**0.5 if gemma else 1.0,
        attention_scale=query_scalar**-0.5,
        num_privileges=num_privileges,
        bos_id=_token_id(reader, "bos_token_id", vocab_size),
        eos_ids=_eos_ids(reader, generation, vocab_size),
        pad_id=_token_id(reader, "pad_token_id", vocab_size),
    )
    reader.harmless(HARMLESS)
    reader.finish(REASONS)
    check_ropes(decoder)
    return decoder


def _family(reader: ConfigReader) -> tuple[Family, bool]:
    """The family, and whether it is a variant of it that only smelt computes."""
    model_type = reader.take("model_type")
    for family, ours in ((family, ours) for family in get_args(Family) for ours in (False, True)):
        sought_type, sought = _names(family, ours)
        if model_type == sought_type:
            architectures = reader.take("architectures", [sought])
            if architectures != [sought]:
                raise reader.refuse("architectures", architectures, f"for {sought_type} it is {sought}")
            return family, ours
    why = "images are not supported" if model_type == "gemma3" else f"known are {', '.join(get_args(Family))}"
    raise reader.refuse("model_type", model_type, why)


def _names(family: Family, ours: bool) -> tuple[str, str]:
    """model_type and architecture."""
    return (f"{OURS}{family}", f"Smelt{ARCHITECTURES[family]}") if ours else (family, ARCHITECTURES[family])


def _refuse_first(reader: ConfigReader) -> None:
    """What smelt knows and does not do; each may be present with the value that switches it off."""
    reader.only("attn_logit_softcapping", why="attention scores are not capped here")
    reader.only("final_logit_softcapping", why="logits are not capped here")
    reader.only("use_bidirectional_attention", False, why="a decoder looks back only")
    reader.only("is_encoder_decoder", False, why="a decoder stands alone")
    reader.only("tie_encoder_decoder", False, why="a decoder stands alone")
    reader.only("add_cross_attention", False, why="a decoder stands alone")
    reader.only("is_decoder", True, False, why="a decoder is one")
    reader.only("rope_interleaved", False, why="rotary halves are not interleaved in this layout")
    reader.only("use_mrope", False, why="multimodal rotary embeddings")
    reader.only("partial_rotary_factor", 1.0, why="rotary embeddings cover the whole head")
    reader.only("pretraining_tp", 1, why="tensor-parallel slices change the order of sums")
    reader.only("pruned_heads", {}, why="heads are not pruned at load")


def _attention_bias(reader: ConfigReader, family: Family) -> bool:
    if family in ("llama", "qwen3", "gemma3_text"):
        return reader.flag("attention_bias", False)
    reader.only("attention_bias", family == "qwen2", why=f"{family} fixes its biases")
    return False


def _num_kv_heads(reader: ConfigReader, family: Family, num_heads: int) -> int:
    if family != "llama" and not reader.says("num_key_value_heads"):
        raise CheckpointError("config.json: num_key_value_heads is missing")
    num_kv_heads = reader.whole("num_key_value_heads", num_heads, at_most=num_heads)
    if num_heads % num_kv_heads:
        raise reader.wrong("num_key_value_heads", num_kv_heads, f"a divisor of num_attention_heads = {num_heads}")
    return num_kv_heads


def _head_dim(reader: ConfigReader, family: Family, hidden: int, num_heads: int) -> int:
    if reader.has("head_dim") or family in ("qwen3", "gemma3_text"):
        head_dim = reader.whole("head_dim", at_least=2, at_most=4096)
    elif hidden % num_heads:
        raise reader.wrong("hidden_size", hidden, f"a multiple of num_attention_heads = {num_heads}")
    else:
        head_dim = hidden // num_heads
    if head_dim % 2:
        raise reader.wrong("head_dim", head_dim, "even, as rotary embeddings turn pairs")
    return head_dim


def _activation(reader: ConfigReader, gemma: bool) -> Any:
    key = "hidden_activation" if gemma and reader.has("hidden_activation") else "hidden_act"
    name = reader.take(key, "gelu_pytorch_tanh" if gemma else "silu")
    if gemma:
        reader.take("hidden_act", None)  # Gemma's older configs carry both; hidden_activation is the one used
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise reader.refuse(key, name, f"known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _token_id(reader: ConfigReader, key: str, vocab_size: int) -> int | None:
    """An id of the vocabulary; null and -1 mean none."""
    if not reader.has(key) or reader.take(key) == -1:
        return None
    return reader.whole(key, at_least=0, at_most=vocab_size - 1)


def _eos_ids(reader: ConfigReader, generation: Mapping[str, Any] | None, vocab_size: int) -> tuple[int, ...]:
    found: Any = reader.take("eos_token_id", [])
    if generation is not None and generation.get("eos_token_id") is not None:
        found = generation["eos_token_id"]
    ids = found if isinstance(found, list) else [found]
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < vocab_size:
            raise reader.wrong("eos_token_id", found, f"ids below vocab_size = {vocab_size}")
    return tuple(dict.fromkeys(ids))


def to_hf(config: DecoderConfig, *, dtype: str = "float32") -> dict[str, Any]:
    """config.json for `config`, readable by transformers 4 and 5; `dtype` is the weights' (float32, ...).

    What is not plain has a model_type of its own, so that other readers refuse the folder by name.
    Raises UnsupportedError when the family cannot express the configuration.
    """
    model_type, architecture = _names(config.family, not config.plain)
    keys: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_len,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids) or None,
        "pad_token_id": config.pad_id,
        **write_ropes(config.ropes),
        **_family_keys(config),
        **({"num_privileges": config.num_privileges} if config.num_privileges else {}),
        **write_variants(config.layers),
    }
    try:
        reread: DecoderConfig | None = from_hf(keys)
    except CheckpointError:
        reread = None
    if reread != config:
        where = _differences(config, reread)
        raise UnsupportedError(f"a {config.family} config.json cannot express this decoder: {where}")
    return keys


def _differences(config: DecoderConfig, reread: DecoderConfig | None) -> str:
    if reread is None:
        return "its values are out of range"
    names = [name for name in config.__slots__ if getattr(config, name) != getattr(reread, name)]
    return ", ".join(
        f"{name} = {getattr(config, name)!r:.60} reads back as {getattr(reread, name)!r:.60}" for name in names
    )


def _family_keys(config: DecoderConfig) -> dict[str, Any]:
    activation = "silu" if config.activation == "silu" else "gelu_pytorch_tanh"
    if config.family == "llama":
        return {"hidden_act": activation, "attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    windows = {layer.window for layer in config.layers if layer.window is not None}
    window = min(windows, default=None)
    kinds = ["full_attention" if layer.window is None else "sliding_attention" for layer in config.layers]
    if config.family == "mistral":
        return {"hidden_act": activation, "sliding_window": window}
    if config.family == "gemma3_text":
        return {
            "hidden_activation": activation,
            "attention_bias": config.qkv_bias,
            "query_pre_attn_scalar": _tidy(config.attention_scale**-2),
            "sliding_window": window,
            "layer_types": kinds,
        }
    slides = {"use_sliding_window": window is not None, "sliding_window": window, "layer_types": kinds}
    # transformers 4 knows no layer_types for Qwen2; a suffix of sliding layers is all it can say, and this says it.
    slides["max_window_layers"] = kinds.index("sliding_attention") if window is not None else config.num_layers
    return {"hidden_act": activation, **slides} | (
        {"attention_bias": config.qkv_bias} if config.family == "qwen3" else {}
    )


def _tidy(scalar: float) -> float | int:
    """256 rather than 255.99999999999997, wherever both give the same scale."""
    nearest = round(scalar)
    return nearest if abs(nearest - scalar) < 1e-9 * scalar else scalar
