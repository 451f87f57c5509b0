"""A step in plain PyTorch over paged keys and values: the native core's slow twin.

One sequence at a time through the decoder that is proven equal to transformers, so that an answer cannot depend on
its batch mates. Made to be right; the native core is made to be fast.

What linear layers keep of a sequence lies with its last block: a block holds the state after the last token that was
computed in it. So a sequence finds it by its block table, and who shares a full block goes on from that block's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smelt.core.decoder import DecoderConfig
from smelt.core.errors import EngineError
from smelt.core.step import StepBatch, StepResult
from smelt.engine.sampling import sample_step
from smelt.model.cache import softmax_rows
from smelt.model.decoder import Decoder

States = dict[int, tuple[Tensor, ...]]
"""Of linear layers, by layer."""


class _Pool:
    """Keys and values of all blocks, [softmax layers, 2, num_blocks * block_size, K, D], and states by block."""

    def __init__(self, config: DecoderConfig, num_blocks: int, block_size: int, device: str) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.rows = softmax_rows(config)
        shape = (len(self.rows), 2, num_blocks * block_size, config.num_kv_heads, config.head_dim)
        self.data = torch.zeros(shape, device=device)
        self.states: dict[int, States] = {}

    def blocks(self, table: NDArray[np.int32], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The block of each position, in rising order. Raises EngineError where one is missing."""
        places = positions // self.block_size
        if places[-1] >= len(table) or not np.all((table[places] >= 0) & (table[places] < self.num_blocks)):
            raise EngineError(f"position {positions[-1]} has no block of the {self.num_blocks} in the pool")
        return table[places].astype(np.int64)

    def state_before(self, table: NDArray[np.int32], position: int) -> States:
        """What linear layers kept of the positions before this one. Raises EngineError where nothing did."""
        if position == 0:
            return {}
        block = int(self.blocks(table, np.array([position - 1]))[0])
        if block not in self.states:
            raise EngineError(f"no state of linear layers behind position {position - 1}")
        return self.states[block]


class _PagedSequence:
    """One sequence's place in the pool, in the form of a cache that `Decoder.hidden` takes."""

    def __init__(self, pool: _Pool, table: NDArray[np.int32], length: int, before: States) -> None:
        self.length = length
        self.states = dict(before)
        self._pool, self._table = pool, table
        self._rows = torch.empty(0, dtype=torch.long)

    def reserve(self, num_tokens: int) -> None:
        """Find the pool rows of all positions, up to the last new one. Raises EngineError where a block is missing."""
        positions = np.arange(self.length + num_tokens)
        blocks = self._pool.blocks(self._table, positions)
        rows = blocks * self._pool.block_size + positions % self._pool.block_size
        self._rows = torch.from_numpy(rows).to(self._pool.data.device)

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Write a layer's new keys and values to their rows; gather those of every position so far."""
        data, new_rows = self._pool.data[self._pool.rows[layer]], self._rows[self.length :]
        data[0, new_rows] = k_BKTD[0].transpose(0, 1)
        data[1, new_rows] = v_BKTD[0].transpose(0, 1)
        keys, values = data[:, self._rows].transpose(1, 2).unbind(0)
        return keys[None], values[None]

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """A linear layer's; None before the first token."""
        return self.states.get(layer)

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """A copy, so that no larger tensor stays alive behind a part of it."""
        self.states[layer] = tuple(part.clone() for part in state)

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
        self._decoder = Decoder.from_tensors(config, tensors).to(device).eval()
        self._is_linear = any(layer.linear is not None for layer in config.layers)
        self._pool = _Pool(config, num_blocks, block_size, device)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def block_size(self) -> int:
        """Tokens per key/value block."""
        return self._pool.block_size

    @property
    def num_blocks(self) -> int:
        """Blocks in the key/value pool."""
        return self._pool.num_blocks

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
        return torch.from_numpy(found[span])[None].to(self._pool.data.device)

    @torch.inference_mode()
    def _logits(self, batch: StepBatch, s: int, *, all_tokens: bool) -> NDArray[np.float32]:
        """Logits after each new token of sequence `s`, or after the last one only; [n or 1, V]."""
        start, end = int(batch.starts[s]), int(batch.starts[s + 1])
        first, table = int(batch.first_positions[s]), batch.block_tables[s]
        hidden = []
        for low, high in self._pieces(first, first + end - start):
            states = self._pool.state_before(table, low) if self._is_linear else {}
            place = _PagedSequence(self._pool, table, low, states)
            span = slice(start + low - first, start + high - first)
            ids = torch.from_numpy(batch.token_ids[span].astype(np.int64))[None].to(self._pool.data.device)
            hidden.append(self._decoder.hidden(ids, privileges_BT=self._privileges(batch, span), cache=place)[0])
            if self._is_linear:
                self._pool.states[int(self._pool.blocks(table, np.array([high - 1]))[0])] = place.states
        kept = torch.cat(hidden) if all_tokens else hidden[-1][-1:]
        logits: NDArray[np.float32] = self._decoder.logits(kept).cpu().numpy()
        return logits

    def _pieces(self, first: int, end: int) -> list[tuple[int, int]]:
        """Positions first .. end in one piece, or cut where blocks end if a state has to be kept there."""
        if not self._is_linear:
            return [(first, end)]
        size = self._pool.block_size
        cuts = [first, *range((first // size + 1) * size, end, size), end]
        return list(pairwise(cuts))
