"""llama.cpp (by llama-cpp-python) on the same weights: a Q8_0 GGUF, written to a temporary file.

The vocabulary is left out of the file ("no_vocab"): only ids go in and logits come out.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smelt.checkpoint import gguf
from smelt.checkpoint.gguf import PackedTensors, header_of
from smelt.core.decoder import DecoderConfig


def write_gguf(path: Path, config: DecoderConfig, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a Q8_0 GGUF of a decoder, as `smelt export` does."""
    header = header_of(config)
    packed = PackedTensors(config, tensors, {}, format="q8_0", header=header)
    gguf.write_gguf(path, header, packed, None, name="rival", format="q8_0")


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
