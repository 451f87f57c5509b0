"""What the keys of a config.json mean that no decoder reads: harmless, or known and refused with a reason."""

from __future__ import annotations

# training and saving
_TRAINING = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "attention_dropout",
        "dtype",
        "finetuning_task",
        "initializer_range",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "name_or_path",
        "prefix",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
    }
)
# execution
_EXECUTION = frozenset(
    {
        "_attn_implementation_autoset",
        "_flash_attn_2_enabled",
        "cache_implementation",
        "chunk_size_feed_forward",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_cache",
    }
)
# classification
_CLASSIFICATION = frozenset({"id2label", "label2id", "num_labels", "problem_type", "task_specific_params"})
# tokenizer and sampling
_SAMPLING = frozenset(
    {
        "decoder_start_token_id",
        "do_sample",
        "max_length",
        "max_new_tokens",
        "min_length",
        "model_max_length",
        "repetition_penalty",
        "sep_token_id",
        "temperature",
        "tokenizer_class",
        "top_k",
        "top_p",
        "unk_token_id",
    }
)

# Keys that say how a model was trained, saved or sampled from, and nothing about what it computes.
HARMLESS = _TRAINING | _EXECUTION | _CLASSIFICATION | _SAMPLING

REASONS = {
    "auto_map": "it would run the folder's own Python code",
    "trust_remote_code": "it would run the folder's own Python code",
    "quantization_config": "quantized weights are read from a folder, not from a configuration alone",
    "compression_config": "an older form of quantization_config; use a plain folder, or one saved anew",
    "vision_config": "images are not supported",
    "num_experts": "mixtures of experts are not supported",
    "num_local_experts": "mixtures of experts are not supported",
    "per_layer_config": "layers of differing shape are not supported",
    "use_qk_norm": "this family has no optional QK-norm",
    "num_nextn_predict_layers": "multi-token prediction is not supported",
}
