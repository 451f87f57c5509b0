"""A builder that has run gives what a fresh one gives: nothing of an earlier step stays behind."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.core.step import StepBatch
from smelt.engine.batch import BatchBuilder, has_mask, is_sampled, is_scored
from smelt.engine.blocks import BlockPool
from smelt.engine.scheduler import Chunk, Scheduler
from smelt.engine.sequence import EngineSequence
from tests.engine.fakes import VOCAB, FakeGrammar, mask_of, request

MAX_RUNNING = 4


def build(builder: BatchBuilder, chunks: list[Chunk]) -> StepBatch:
    masked = [chunk for chunk in chunks if has_mask(chunk)]
    for i, chunk in enumerate(masked):
        builder.mask_row(i)[:] = mask_of(VOCAB, {len(chunk.sequence.token_ids) % VOCAB})[0]
    return builder.build(chunks)


def assert_equal(found: StepBatch, expected: StepBatch) -> None:
    for field in dataclasses.fields(StepBatch):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "block_tables":  # the used one has spare columns
            width = max(mine.shape[1], theirs.shape[1])
            mine, theirs = (np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=-1) for x in (mine, theirs))
        assert mine.dtype == theirs.dtype, field.name
        assert mine.flags.c_contiguous, field.name
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_used_builder_equals_a_fresh_one(data):
    """Arrivals, ends, preemptions, forced tokens, masks, penalties, scores: every array, at every step."""
    budget = MAX_RUNNING + data.draw(st.sampled_from([0, 2, 6]))
    scheduler = Scheduler(BlockPool(12), block_size=2, max_batch_tokens=budget, max_running=MAX_RUNNING)
    used = BatchBuilder(vocab_size=VOCAB, max_running=MAX_RUNNING)
    for _ in range(data.draw(st.integers(1, 15))):
        if len(scheduler.waiting) < 3 and data.draw(st.booleans()):
            prompt = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9))
            one = request(
                prompt,
                privileges=bytes(token_id % 6 for token_id in prompt),
                max_new_tokens=12,
                seed=data.draw(st.integers(-5, 5)),
                temperature=data.draw(st.sampled_from([0.0, 0.5])),
                presence_penalty=data.draw(st.sampled_from([0.0, 1.0])),
                logit_bias=data.draw(st.sampled_from([{}, {1: 2.0, 3: -1.0}])),
                top_logprobs=data.draw(st.sampled_from([None, 2])),
                score_prompt=data.draw(st.booleans()),
                matcher=data.draw(st.sampled_from([None, FakeGrammar(0)])),
            )
            scheduler.add(EngineSequence(one))
        chunks = scheduler.schedule()
        if not chunks:
            continue
        batch = build(used, chunks)
        assert_equal(batch, build(BatchBuilder(vocab_size=VOCAB, max_running=MAX_RUNNING), chunks))
        assert batch.sample.tolist() == [is_sampled(chunk) for chunk in chunks]
        spans = [(c.sequence.privileges, c.sequence.num_computed, c.num_tokens) for c in chunks]
        assert batch.privileges is not None
        assert batch.privileges.tobytes() == b"".join(said[first : first + num] for said, first, num in spans)
        assert batch.score.tolist() == [is_scored(chunk) for chunk in chunks]
        for chunk in chunks:
            sequence = chunk.sequence
            scheduler.computed(chunk)
            if sequence.prompt_logprobs is not None:
                known = min(sequence.num_computed + 1, sequence.prompt_len)
                sequence.prompt_logprobs += [None] * (known - len(sequence.prompt_logprobs))
                if known == sequence.prompt_len:
                    sequence.prompt_logprobs = None
            if not chunk.is_last:
                continue
            for token_id in data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3)):
                sequence.append(token_id)
            if sequence.num_generated > 8 or data.draw(st.integers(0, 9)) == 0:
                scheduler.remove(sequence)


def test_the_arrays_of_a_mixed_step():
    """Written out once by hand: a decoding sequence with penalties beside a prompt that is scored in chunks."""
    scheduler = Scheduler(BlockPool(8), block_size=2, max_batch_tokens=4, max_running=2)
    builder = BatchBuilder(vocab_size=VOCAB, max_running=2)
    decoding = EngineSequence(request([4, 5], seed=-1, frequency_penalty=0.5, max_new_tokens=9))
    scheduler.add(decoding)
    (chunk,) = scheduler.schedule()
    scheduler.computed(chunk)
    for token_id in (8, 8, 6):
        decoding.append(token_id)
    decoding.num_computed += 2
    scoring = EngineSequence(request([1, 2, 3, 4], score_prompt=True, top_logprobs=2, logit_bias={7: 1.5}))
    scheduler.add(scoring)
    batch = builder.build(scheduler.schedule())
    assert batch.token_ids.tolist() == [6, 1, 2, 3]
    assert batch.starts.tolist() == [0, 1, 4]
    assert batch.next_ids.tolist() == [-1, 2, 3, 4]
    assert batch.first_positions.tolist() == [4, 0]
    assert (batch.sample.tolist(), batch.score.tolist()) == ([1, 0], [0, 1])
    assert batch.seeds.tolist() == [2**64 - 1, 0] and batch.draws[0] == 3
    assert batch.top_k.tolist() == [-1, 2]
    assert (batch.bias_starts.tolist(), batch.bias_ids.tolist(), batch.bias_values.tolist()) == ([0, 0, 1], [7], [1.5])
    assert (batch.count_starts.tolist(), batch.count_ids.tolist(), batch.counts.tolist()) == ([0, 2, 2], [8, 6], [2, 1])
    assert batch.mask_rows.tolist() == [-1, -1] and batch.masks.shape == (0, 1)
    for s, sequence in enumerate((decoding, scoring)):
        assert batch.block_tables[s, : len(sequence.blocks)].tolist() == sequence.blocks
        assert (batch.block_tables[s, len(sequence.blocks) :] == -1).all()


def test_a_sequence_that_comes_back_with_as_many_other_blocks_gets_its_new_table():
    """A preempted sequence is recognised by its list of blocks, not by how many it has."""
    sequence = EngineSequence(request([1, 2, 3, 4]))
    builder = BatchBuilder(vocab_size=VOCAB, max_running=1)
    sequence.blocks = [5, 6]
    assert builder.build([Chunk.of(sequence, 4)]).block_tables[0, :2].tolist() == [5, 6]
    sequence.forget_computed()
    sequence.blocks = [2, 0]
    assert builder.build([Chunk.of(sequence, 4)]).block_tables[0, :2].tolist() == [2, 0]


def test_a_chunk_that_draws_nothing_keeps_no_mask_of_the_step_before():
    """The same two sequences; in the second step one has forced tokens left to compute and is not drawn from."""
    builder = BatchBuilder(vocab_size=VOCAB, max_running=2)
    sequences = [EngineSequence(request([1], matcher=FakeGrammar(i))) for i in range(2)]
    for sequence in sequences:
        sequence.blocks = [0, 1]
    assert build(builder, [Chunk.of(sequence, 1) for sequence in sequences]).mask_rows.tolist() == [0, 1]
    for sequence in sequences:
        sequence.num_computed, sequence.decoding = 1, True
        sequence.append(2)
    sequences[0].append(3)
    batch = build(builder, [Chunk.of(sequence, 1) for sequence in sequences])
    assert batch.mask_rows.tolist() == [-1, 0] and len(batch.masks) == 1
