"""From chunks to a StepBatch, cheaply: a decode step of a tiny model takes a few hundred microseconds.

What does not change between steps (sampling parameters, known block table entries) is kept per roster, the list of
sequences in the step. While the roster stays and every sequence decodes one token, a step writes three integers per
sequence into arrays that already exist. `BatchBuilder.build` on a fresh builder is the slow twin of one that has run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from smelt.core.step import StepBatch

if TYPE_CHECKING:
    from smelt.core.step import F32, I32, U8, U32, U64
    from smelt.engine.scheduler import Chunk
    from smelt.engine.sequence import EngineSequence

_MASK64 = (1 << 64) - 1
_NO_IDS = np.zeros(0, np.int32)
_NO_VALUES = np.zeros(0, np.float32)


class BatchBuilder:
    """Builds one StepBatch after another; each is valid until the next call."""

    def __init__(self, *, vocab_size: int, max_running: int) -> None:
        num_words = -(-vocab_size // 32)
        self._mask_buffer: U32 = np.zeros((max_running, num_words), np.uint32)
        self._roster: _Roster | None = None

    def mask_row(self, index: int) -> U32:
        """Row `index` of the step's masks, zeroed, to be filled before `build`.

        Row i belongs to the i-th chunk that `has_mask`.
        """
        row: U32 = self._mask_buffer[index]
        row[:] = 0
        return row

    def build(self, chunks: Sequence[Chunk]) -> StepBatch:
        """The batch of these chunks, in this order."""
        sequences = [chunk.sequence for chunk in chunks]
        roster = self._roster
        if roster is None or roster.sequences != sequences:  # sequences compare by identity
            roster = self._roster = _Roster(sequences)
        roster.update_tables()
        num_masks = self._place_masks(chunks, roster) if roster.any_matcher else 0
        if roster.any_counts:
            roster.update_counts()
        if all(chunk.num_tokens == 1 and chunk.is_last and chunk.sequence.decoding for chunk in chunks):
            return roster.decode_batch(self._mask_buffer[:num_masks])
        return roster.batch(chunks, self._mask_buffer[:num_masks])

    def _place_masks(self, chunks: Sequence[Chunk], roster: _Roster) -> int:
        num_masks = 0
        for s, chunk in enumerate(chunks):
            if has_mask(chunk):
                roster.mask_rows[s] = num_masks
                num_masks += 1
            else:
                roster.mask_rows[s] = -1
        return num_masks


def has_mask(chunk: Chunk) -> bool:
    """A token will be drawn under a grammar after this chunk."""
    return chunk.sequence.request.matcher is not None and is_sampled(chunk)


def is_sampled(chunk: Chunk) -> bool:
    """A token will be drawn after this chunk."""
    return chunk.is_last and chunk.sequence.num_generated < chunk.sequence.request.max_new_tokens


def is_scored(chunk: Chunk) -> bool:
    """This chunk brings log-probabilities of prompt tokens that are not known yet."""
    sequence = chunk.sequence
    if sequence.prompt_logprobs is None:
        return False
    return sequence.num_computed + chunk.num_tokens >= len(sequence.prompt_logprobs) < sequence.prompt_len


class _Roster:
    """The arrays of one list of sequences."""

    def __init__(self, sequences: list[EngineSequence]) -> None:
        params = [sequence.request.params for sequence in sequences]
        num = len(sequences)
        self.sequences = sequences
        self.temperatures: F32 = np.array([p.temperature for p in params], np.float32)
        self.top_ps: F32 = np.array([p.top_p for p in params], np.float32)
        self.presence_penalties: F32 = np.array([p.presence_penalty for p in params], np.float32)
        self.frequency_penalties: F32 = np.array([p.frequency_penalty for p in params], np.float32)
        self.seeds: U64 = np.array([sequence.request.seed & _MASK64 for sequence in sequences], np.uint64)
        self.top_k: I32 = np.array([-1 if p.top_logprobs is None else p.top_logprobs for p in params], np.int32)
        self.bias_starts = _starts(len(p.logit_bias) for p in params)
        biases = [pair for p in params for pair in p.logit_bias.items()]
        self.bias_ids: I32 = np.array([token for token, _ in biases], np.int32) if biases else _NO_IDS
        self.bias_values: F32 = np.array([value for _, value in biases], np.float32) if biases else _NO_VALUES
        self.any_matcher = any(sequence.request.matcher is not None for sequence in sequences)
        self.any_counts = any(sequence.counts is not None for sequence in sequences)
        self.mask_rows: I32 = np.full(num, -1, np.int32)
        self.count_starts: I32 = np.zeros(num + 1, np.int32)
        self.count_ids: I32 = _NO_IDS
        self.counts: I32 = _NO_IDS
        self.first_positions: I32 = np.zeros(num, np.int32)
        self.draws: U64 = np.zeros(num, np.uint64)
        self.block_tables: I32 = np.full((num, 1), -1, np.int32)
        self._copied: list[tuple[list[int], int]] = [([], 0)] * num  # per row: which list, how much of it
        self._decode: StepBatch | None = None

    def update_tables(self) -> None:
        """Bring `block_tables` up to date; a preempted sequence comes back with another list of blocks."""
        for s, sequence in enumerate(self.sequences):
            blocks, num_copied = self._copied[s]
            if blocks is sequence.blocks and num_copied == len(blocks):
                continue
            if blocks is not sequence.blocks:
                blocks, num_copied = sequence.blocks, 0
                self.block_tables[s] = -1
            if len(blocks) > self.block_tables.shape[1]:
                self._widen(2 * len(blocks))
            self.block_tables[s, num_copied : len(blocks)] = blocks[num_copied:]
            self._copied[s] = (blocks, len(blocks))

    def update_counts(self) -> None:
        """Counts of generated tokens, for the sequences whose penalties need them."""
        counts = [sequence.counts for sequence in self.sequences]
        self.count_starts = _starts(0 if c is None else len(c.ids) for c in counts)
        self.count_ids = np.concatenate([_NO_IDS, *(np.array(c.ids, np.int32) for c in counts if c)])
        self.counts = np.concatenate([_NO_IDS, *(np.array(c.counts, np.int32) for c in counts if c)])

    def decode_batch(self, masks: U32) -> StepBatch:
        """Every sequence computes its one missing token and draws the next."""
        batch = self._decode
        if batch is None:
            num = len(self.sequences)
            batch = self._decode = self._assemble(
                token_ids=np.zeros(num, np.int32),
                privileges=np.zeros(num, np.uint8),
                starts=np.arange(num + 1, dtype=np.int32),
                next_ids=np.full(num, -1, np.int32),
                sample=np.ones(num, np.uint8),
                score=np.zeros(num, np.uint8),
                masks=masks,
            )
        token_ids, first_positions, draws = batch.token_ids, self.first_positions, self.draws
        privileges = cast("U8", batch.privileges)
        for s, sequence in enumerate(self.sequences):
            position = sequence.num_computed
            token_ids[s] = sequence.token_ids[position]
            privileges[s] = sequence.privileges[position]
            first_positions[s] = position
            draws[s] = position + 1 - sequence.prompt_len
        batch.block_tables = self.block_tables
        batch.masks = masks
        batch.count_starts, batch.count_ids, batch.counts = self.count_starts, self.count_ids, self.counts
        return batch

    def batch(self, chunks: Sequence[Chunk], masks: U32) -> StepBatch:
        """Chunks of any length."""
        starts = _starts(chunk.num_tokens for chunk in chunks)
        token_ids: I32 = np.empty(starts[-1], np.int32)
        privileges: U8 = np.empty(starts[-1], np.uint8)
        next_ids: I32 = np.full(starts[-1], -1, np.int32)
        score: U8 = np.array([is_scored(chunk) for chunk in chunks], np.uint8)
        for s, chunk in enumerate(chunks):
            sequence, start = chunk.sequence, int(starts[s])
            first, end = sequence.num_computed, sequence.num_computed + chunk.num_tokens
            token_ids[start : starts[s + 1]] = sequence.token_ids[first:end]
            privileges[start : starts[s + 1]] = sequence.privileges[first:end]
            if score[s]:
                successors = sequence.token_ids[first + 1 : end + 1]
                next_ids[start : start + len(successors)] = successors
            self.first_positions[s] = first
            self.draws[s] = sequence.num_generated
        return self._assemble(
            token_ids=token_ids,
            privileges=privileges,
            starts=starts,
            next_ids=next_ids,
            sample=np.array([is_sampled(chunk) for chunk in chunks], np.uint8),
            score=score,
            masks=masks,
        )

    def _assemble(
        self, *, token_ids: I32, privileges: U8, starts: I32, next_ids: I32, sample: U8, score: U8, masks: U32
    ) -> StepBatch:
        return StepBatch(
            token_ids=token_ids,
            privileges=privileges,
            starts=starts,
            next_ids=next_ids,
            first_positions=self.first_positions,
            block_tables=self.block_tables,
            sample=sample,
            score=score,
            temperatures=self.temperatures,
            top_ps=self.top_ps,
            presence_penalties=self.presence_penalties,
            frequency_penalties=self.frequency_penalties,
            seeds=self.seeds,
            draws=self.draws,
            top_k=self.top_k,
            bias_starts=self.bias_starts,
            bias_ids=self.bias_ids,
            bias_values=self.bias_values,
            count_starts=self.count_starts,
            count_ids=self.count_ids,
            counts=self.counts,
            mask_rows=self.mask_rows,
            masks=masks,
        )

    def _widen(self, num_columns: int) -> None:
        """More columns than needed now, so that growth copies a table once in a while and not once a block."""
        wider: I32 = np.full((len(self.sequences), num_columns), -1, np.int32)
        wider[:, : self.block_tables.shape[1]] = self.block_tables
        self.block_tables = wider


def _starts(lengths: Iterable[int]) -> I32:
    """CSR offsets: 0, then the running sum."""
    return np.cumsum([0, *lengths], dtype=np.int32)
