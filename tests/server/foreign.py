"""Folders as other people have them: tiny random models written by transformers, tokenizers in their families' manner.

The vocabularies are trained here; the arrangement around them (normalizer, expression, control tokens and their flags,
post-processor, chat template) is that of the families' published folders. Weights are spread wide, so that greedy
choices are far from ties.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from smelt.tokenizer.patterns import PATTERNS
from tests.tokenizer.samples import CORPUS

FAMILIES = ("llama3", "mistral", "qwen2", "qwen3", "gemma3")
CHAT_FAMILIES = ("llama3", "qwen2", "qwen3", "gemma3")
NUM_MERGES = 180

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}
_TEXTS = [*CORPUS, json.dumps({"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}, indent=1)]


def make_foreign_folder(path: Path, family: str) -> Path:
    """A folder of `family` in several safetensors shards, as save_pretrained leaves it."""
    tokenizer = _TOKENIZERS[family]()
    tokenizer.save_pretrained(path)
    torch.manual_seed(sum(map(ord, family)))
    config = _config(family, len(tokenizer), tokenizer)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    if family == "gemma3":  # as published: the end of a turn is an end only in generation_config.json
        model.generation_config = transformers.GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=[config.eos_token_id, _id(tokenizer, "<end_of_turn>")]
        )
    model.save_pretrained(path, max_shard_size="40KB")
    return path


def _config(family: str, vocab_size: int, tokenizer: transformers.PreTrainedTokenizerFast) -> Any:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    common = _SMALL | ids | {"vocab_size": vocab_size, "pad_token_id": tokenizer.pad_token_id}
    if family == "llama3":
        scaling = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
        scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 256}
        stops = [_id(tokenizer, name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
        common |= {"eos_token_id": stops, "head_dim": 8, "rope_parameters": scaling}
        return transformers.LlamaConfig(**common)
    if family == "mistral":
        return transformers.MistralConfig(**common, sliding_window=None, head_dim=8)
    if family == "qwen2":  # the published vocabularies are padded past the tokenizer's last id
        return transformers.Qwen2Config(**(common | {"vocab_size": vocab_size + 24}), tie_word_embeddings=True)
    if family == "qwen3":
        return transformers.Qwen3Config(**common, head_dim=16, tie_word_embeddings=True)
    return transformers.Gemma3TextConfig(
        **common,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=16,
        layer_types=["sliding_attention"] * 1 + ["full_attention"],
    )


def _id(tokenizer: transformers.PreTrainedTokenizerFast, name: str) -> int:
    found = tokenizer.convert_tokens_to_ids(name)
    assert isinstance(found, int)
    return found


def _byte_level(pattern: str, *, ignore_merges: bool = False, nfc: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + NUM_MERGES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.model.ignore_merges = ignore_merges
    return tokenizer


def _control(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def _fast(tokenizer: Tokenizer, **settings: Any) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def _llama3() -> transformers.PreTrainedTokenizerFast:
    tokenizer = _byte_level(PATTERNS["cl100k_base"], ignore_merges=True)
    names = ["begin_of_text", "end_of_text", "reserved_special_token_0", "finetune_right_pad_id", "start_header_id"]
    names += ["end_header_id", "eom_id", "eot_id", "python_tag", "reserved_special_token_1"]
    tokenizer.add_special_tokens(_control(*(f"<|{name}|>" for name in names)))
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
            ),
        ]
    )
    template = (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )
    return _fast(tokenizer, bos_token=bos, eos_token="<|eot_id|>", chat_template=template)


def _qwen(*, thinks: bool) -> transformers.PreTrainedTokenizerFast:
    tokenizer = _byte_level(PATTERNS["qwen2"], nfc=True)
    tokenizer.add_special_tokens(_control("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"))
    plain = ["<tool_call>", "</tool_call>", "<|fim_prefix|>"]
    plain += ["<tool_response>", "</tool_response>", "<think>", "</think>"] if thinks else []
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    opening = "<|im_start|>assistant\n" + (
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
        if thinks
        else ""
    )
    template = (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}" + opening + "{% endif %}"
    )
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return _fast(tokenizer, chat_template=template, add_bos_token=False, **ends)


def _qwen2() -> transformers.PreTrainedTokenizerFast:
    return _qwen(thinks=False)


def _qwen3() -> transformers.PreTrainedTokenizerFast:
    return _qwen(thinks=True)


def _byte_fallback(controls: list[str], *, gemma: bool) -> Tokenizer:
    """SentencePiece-like: spaces as U+2581, single bytes as <0x..>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    pieces = [*controls, *(f"<0x{byte:02X}>" for byte in range(256))]
    # Trained by lines: a vocabulary whose words run over spaces would be unlike any published one.
    lines = [word for text in _TEXTS for word in text.split("\n")]
    trainer = trainers.BpeTrainer(
        vocab_size=len(pieces) + 120 + NUM_MERGES, special_tokens=pieces, max_token_length=12, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(spec))


def _begins_with(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _mistral() -> transformers.PreTrainedTokenizerFast:
    """A base model: no chat template."""
    tokenizer = _byte_fallback(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"], gemma=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _fast(_begins_with(tokenizer, "<s>"), add_bos_token=True, **names)


def _gemma3() -> transformers.PreTrainedTokenizerFast:
    controls = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "<unused0>"]
    tokenizer = _byte_fallback([*controls, "<start_of_turn>", "<end_of_turn>"], gemma=True)
    tokenizer.add_tokens([AddedToken("\n" * count, special=False, normalized=False) for count in (2, 3)])
    template = (
        "{{ bos_token }}{% for message in messages %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _fast(_begins_with(tokenizer, "<bos>"), chat_template=template, **names)


_TOKENIZERS = {"llama3": _llama3, "mistral": _mistral, "qwen2": _qwen2, "qwen3": _qwen3, "gemma3": _gemma3}
