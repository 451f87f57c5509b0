"""llama.cpp (by llama-cpp-python) on the same weights: a Q8_0 GGUF of a Gemma 3 folder, written to a temporary file.

The vocabulary is left out of the file ("no_vocab"): only ids go in and logits come out.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smelt.core.decoder import DecoderConfig

GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, config: DecoderConfig, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a Q8_0 GGUF of a gemma3_text decoder (norms in fp32, with Gemma's +1 added as the format asks)."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    if config.family != "gemma3_text":
        raise SystemExit(f"the rival is built for gemma3_text folders, this one is {config.family}")
    writer = GGUFWriter(path, "gemma3")
    writer.add_context_length(config.context_len)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(max(rope.base for rope in config.ropes))
    windows = [layer.window for layer in config.layers if layer.window]
    writer.add_sliding_window(min(windows) if windows else config.context_len)
    writer.add_tokenizer_model("no_vocab")
    for name, value in tensors.items():
        if name == "model.embed_tokens.weight":
            new = "token_embd.weight"
        elif name == "model.norm.weight":
            new = "output_norm.weight"
        else:
            _, _, layer, rest = name.split(".", 3)
            new = f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"
        if value.ndim == 1:
            writer.add_tensor(new, np.asarray(value + 1.0, dtype=np.float32))
        else:
            packed = quants.quantize(np.asarray(value, dtype=np.float32), GGMLQuantizationType.Q8_0)
            writer.add_tensor(new, packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Rival:
    """A loaded llama.cpp context for up to `num_sequences` sequences of `context_len` tokens together."""

    def __init__(self, path: Path, *, context_len: int, num_sequences: int, num_threads: int, vocab_size: int) -> None:
        import llama_cpp as lc

        self._lc, self._vocab_size = lc, vocab_size
        self._quiet = lc.llama_log_callback(lambda level, text, data: None)
        lc.llama_log_set(self._quiet, ctypes.c_void_p(0))
        lc.llama_backend_init()
        self._model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
        if not self._model:
            raise SystemExit("llama.cpp could not load the GGUF file")
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context_len, 512, 512
        params.n_seq_max, params.n_threads, params.n_threads_batch = num_sequences, num_threads, num_threads
        params.kv_unified = True
        self._context = lc.llama_init_from_model(self._model, params)
        self._batch = lc.llama_batch_init(512, 0, 1)

    def clear(self) -> None:
        """Forget all sequences."""
        self._lc.llama_memory_clear(self._lc.llama_get_memory(self._context), True)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Compute rows of (token id, position, sequence, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = int(wanted)
        if self._lc.llama_decode(self._context, batch):
            raise SystemExit("llama_decode failed")

    def logits(self, row: int) -> NDArray[np.float32]:
        """Logits [V] of batch row `row`."""
        pointer = self._lc.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))

    def prefill_s(self, ids: list[int]) -> float:
        """Seconds from a prompt to its last token's logits."""
        self.clear()
        start = time.perf_counter()
        self.decode([(token, i, 0, i == len(ids) - 1) for i, token in enumerate(ids)])
        self.logits(len(ids) - 1)
        return time.perf_counter() - start

    def decode_tok_s(self, ids: list[int], *, num_sequences: int, num_tokens: int) -> float:
        """Greedy tokens per second of `num_sequences` equal sequences together, after their prompts."""
        self.clear()
        for sequence in range(num_sequences):
            self.decode([(token, i, sequence, i == len(ids) - 1) for i, token in enumerate(ids)])
        tokens = [ids[-1]] * num_sequences
        start = time.perf_counter()
        for step in range(num_tokens):
            self.decode([(token, len(ids) + step, sequence, True) for sequence, token in enumerate(tokens)])
            tokens = [int(self.logits(row).argmax()) for row in range(num_sequences)]
        return num_tokens * num_sequences / (time.perf_counter() - start)
