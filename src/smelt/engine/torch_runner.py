"""A step in plain PyTorch over paged keys and values: the native core's slow twin.

One sequence at a time through the decoder that is proven equal to transformers, so that an answer cannot depend on
its batch mates. Made to be right; the native core is made to be fast.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smelt.core.decoder import DecoderConfig
from smelt.core.errors import EngineError
from smelt.core.step import StepBatch, StepResult
from smelt.engine.sampling import sample_step
from smelt.model.decoder import Decoder


class _PagedSequence:
    """One sequence's place in the pool, in the form of a cache that `Decoder.hidden` takes."""

    def __init__(self, pool: Tensor, table: NDArray[np.int32], length: int, block_size: int) -> None:
        self.length = length
        self._pool, self._table, self._block_size = pool, table, block_size
        self._rows = torch.empty(0, dtype=torch.long)

    def reserve(self, num_tokens: int) -> None:
        """Find the pool rows of all positions, up to the last new one. Raises EngineError where a block is missing."""
        positions = np.arange(self.length + num_tokens)
        places = positions // self._block_size
        num_blocks = self._pool.shape[2] // self._block_size
        if places[-1] >= len(self._table) or not np.all(
            (self._table[places] >= 0) & (self._table[places] < num_blocks)
        ):
            raise EngineError(f"position {positions[-1]} has no block of the {num_blocks} in the pool")
        rows = self._table[places].astype(np.int64) * self._block_size + positions % self._block_size
        self._rows = torch.from_numpy(rows).to(self._pool.device)

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Write a layer's new keys and values to their rows; gather those of every position so far."""
        new_rows = self._rows[self.length :]
        self._pool[layer, 0, new_rows] = k_BKTD[0].transpose(0, 1)
        self._pool[layer, 1, new_rows] = v_BKTD[0].transpose(0, 1)
        keys, values = self._pool[layer][:, self._rows].transpose(1, 2).unbind(0)
        return keys[None], values[None]

    def advance(self, num_tokens: int) -> None:
        """All layers are written."""
        self.length += num_tokens


class TorchRunner:
    """`core.step.Runner` in float32 on one torch device.

    The pool holds `num_blocks` blocks of `block_size` positions; tensors are those of an opened checkpoint.
    """

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Mapping[str, NDArray[np.float32]],
        *,
        num_blocks: int,
        block_size: int = 16,
        device: str = "cpu",
    ) -> None:
        self.config = config
        self._num_blocks, self._block_size = num_blocks, block_size
        self._decoder = Decoder.from_tensors(config, tensors).to(device).eval()
        shape = (config.num_layers, 2, num_blocks * block_size, config.num_kv_heads, config.head_dim)
        self._pool = torch.zeros(shape, device=device)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def block_size(self) -> int:
        """Tokens per key/value block."""
        return self._block_size

    @property
    def num_blocks(self) -> int:
        """Blocks in the key/value pool."""
        return self._num_blocks

    def step(self, batch: StepBatch) -> StepResult:
        """Compute the batch, write its keys and values, sample. Raises EngineError on failure."""
        if np.any((batch.token_ids < 0) | (batch.token_ids >= self.vocab_size)):
            raise EngineError(f"a token id lies outside the vocabulary of {self.vocab_size}")
        last_rows, scored_rows = [], [np.zeros((0, self.vocab_size), np.float32)]
        try:
            for s in range(batch.num_sequences):
                wants_all = bool(batch.score[s])
                logits = self._logits(batch, s, all_tokens=wants_all)
                last_rows.append(logits[-1])
                if wants_all:
                    scored_rows.append(logits)
        except RuntimeError as error:  # how torch reports everything, memory and device included
            raise EngineError(f"torch: {error}") from error
        return sample_step(np.stack(last_rows), np.concatenate(scored_rows), batch)

    def _privileges(self, batch: StepBatch, span: slice) -> Tensor | None:
        """Who said the tokens of `span`, [1, n], where the model has a table of that."""
        if not self.config.num_privileges:
            return None
        found = batch.privileges
        if found is None or len(found) != len(batch.token_ids) or np.any(found >= self.config.num_privileges):
            raise EngineError(f"sought a privilege below {self.config.num_privileges} for every token of the step")
        return torch.from_numpy(found[span])[None].to(self._pool.device)

    @torch.inference_mode()
    def _logits(self, batch: StepBatch, s: int, *, all_tokens: bool) -> NDArray[np.float32]:
        """Logits after each new token of sequence `s`, or after the last one only; [n or 1, V]."""
        ids = torch.from_numpy(batch.token_ids[batch.starts[s] : batch.starts[s + 1]].astype(np.int64))
        place = _PagedSequence(self._pool, batch.block_tables[s], int(batch.first_positions[s]), self._block_size)
        said = self._privileges(batch, slice(batch.starts[s], batch.starts[s + 1]))
        hidden = self._decoder.hidden(ids[None].to(self._pool.device), privileges_BT=said, cache=place)[0]
        logits: NDArray[np.float32] = self._decoder.logits(hidden if all_tokens else hidden[-1:]).cpu().numpy()
        return logits
