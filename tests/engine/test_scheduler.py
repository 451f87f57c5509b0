"""Budget, order, admission, preemption: the policy, looked at without a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.engine.blocks import BlockPool
from smelt.engine.scheduler import Chunk, Scheduler, share_budget
from smelt.engine.sequence import EngineSequence
from tests.engine.fakes import request


def make(num_blocks: int = 64, block_size: int = 4, budget: int = 32, max_running: int = 4) -> Scheduler:
    return Scheduler(BlockPool(num_blocks), block_size=block_size, max_batch_tokens=budget, max_running=max_running)


def add(scheduler: Scheduler, prompt_len: int, **fields: object) -> EngineSequence:
    """A prompt of its own: nothing is shared by accident."""
    start = 100 * (len(scheduler.running) + len(scheduler.waiting) + 1)
    sequence = EngineSequence(request([start + i for i in range(prompt_len)], **fields))
    scheduler.add(sequence)
    return sequence


def step(scheduler: Scheduler) -> list[Chunk]:
    """Schedule, compute, and draw token 7 where one is due."""
    chunks = scheduler.schedule()
    for chunk in chunks:
        scheduler.computed(chunk)
        if chunk.is_last:
            chunk.sequence.append(7)
    scheduler.check_integrity()
    return chunks


def sizes(chunks: list[Chunk]) -> list[int]:
    return [chunk.num_tokens for chunk in chunks]


@given(wants=st.lists(st.integers(1, 50), max_size=8), extra=st.integers(0, 60))
def test_a_shared_budget_is_used_up_and_everyone_gets_some(wants, extra):
    budget = len(wants) + extra
    grants = share_budget(budget, wants)
    assert all(1 <= grant <= want for grant, want in zip(grants, wants, strict=True))
    assert sum(grants) == min(budget, sum(wants))


def test_the_oldest_prompt_keeps_half_and_a_short_one_passes_through():
    assert share_budget(32, [1000]) == [32]
    assert share_budget(32, [1000, 5]) == [27, 5]
    assert share_budget(32, [1000, 1000, 1000]) == [16, 8, 8]
    assert share_budget(3, [9, 9, 9]) == [1, 1, 1]


def test_a_long_prompt_does_not_stop_those_who_decode():
    """llama.cpp#4216: a new prompt froze everyone else. Here each decoding sequence has a token in every step."""
    scheduler = make(budget=8)
    first, second = add(scheduler, 3), add(scheduler, 2)
    step(scheduler)
    long = add(scheduler, 60)
    for _ in range(9):
        chunks = step(scheduler)
        assert [chunk.sequence for chunk in chunks] == [first, second, long]
        assert sizes(chunks) == [1, 1, 6]
    assert long.num_computed == 54


def test_a_short_prompt_does_not_wait_for_a_long_one():
    scheduler = make(budget=8)
    add(scheduler, 100)
    step(scheduler)
    short = add(scheduler, 4)
    step(scheduler)
    assert short.decoding


def test_forced_tokens_are_one_chunk_and_leave_others_their_token():
    scheduler = make(budget=10, max_running=3)
    first, second = add(scheduler, 2), add(scheduler, 2)
    step(scheduler)
    for _ in range(20):
        first.append(5)
    assert sizes(step(scheduler)) == [1 + 7, 1]
    assert not first.decoding and second.decoding
    assert sizes(step(scheduler)) == [1, 9]  # what is left of a long forced text counts as a prompt


def test_preemption_takes_the_newest_and_it_comes_back_with_its_answer():
    scheduler = make(num_blocks=6, block_size=2)
    old, new = add(scheduler, 4), add(scheduler, 3)
    while not scheduler.num_preemptions:
        step(scheduler)
    assert scheduler.running == [old] and list(scheduler.waiting) == [new]
    known = list(new.token_ids)
    assert len(known) > 3 and new.num_computed == 0 and not new.blocks
    scheduler.remove(old)
    chunks = step(scheduler)
    assert chunks[0].sequence is new and chunks[0].is_last
    assert list(new.token_ids[: len(known)]) == known


def test_the_order_of_arrival_survives_preemption():
    scheduler = make(num_blocks=9, block_size=1, max_running=3)
    sequences = [add(scheduler, 2), add(scheduler, 2), add(scheduler, 2), add(scheduler, 2)]
    for _ in range(5):
        step(scheduler)
        assert [*scheduler.running, *scheduler.waiting] == sequences
    assert scheduler.num_preemptions > 0


def test_admission_waits_for_room_for_the_whole_prompt_and_in_order():
    """The small request behind the big one does not overtake it: nobody starves."""
    scheduler = make(num_blocks=8, block_size=2)
    first = add(scheduler, 6)
    step(scheduler)
    big, small = add(scheduler, 12), add(scheduler, 1)
    step(scheduler)
    assert scheduler.running == [first] and list(scheduler.waiting) == [big, small]
    scheduler.remove(first)
    step(scheduler)
    assert scheduler.running == [big, small]


def test_admission_leaves_a_block_for_each_running_sequence():
    """Without headroom a preempted sequence would be admitted and preempted again with every block of growth."""
    scheduler = make(num_blocks=5, block_size=2)
    add(scheduler, 3)
    step(scheduler)  # holds 2 blocks and soon a third
    add(scheduler, 6)  # needs the 3 that are left now
    step(scheduler)
    assert len(scheduler.running) == 1
    for _ in range(4):
        step(scheduler)
    assert scheduler.num_preemptions == 0


def test_a_cached_prompt_is_computed_from_its_last_block_on():
    scheduler = make(block_size=4)
    prompt = list(range(8))
    first = EngineSequence(request(prompt))
    scheduler.add(first)
    step(scheduler)
    again, longer = EngineSequence(request(prompt)), EngineSequence(request([*prompt, 8]))
    scheduler.add(again)
    scheduler.add(longer)
    chunks = step(scheduler)
    assert sizes(chunks) == [1, 4, 1]  # the last prompt token is needed for its logits, and blocks are shared whole
    assert (again.cached_len, longer.cached_len) == (4, 8)
    assert again.blocks[0] == longer.blocks[0] == first.blocks[0]
    assert longer.blocks[1] == first.blocks[1] != again.blocks[1]


def test_the_answer_is_cached_as_what_the_assistant_said():
    """The next turn of a conversation repeats the answer with the assistant's privilege and finds it."""
    scheduler = make(block_size=2)
    first = EngineSequence(request([1, 2, 3]))
    scheduler.add(first)
    for _ in range(4):
        step(scheduler)
    scheduler.remove(first)
    turn = [1, 2, 3, 7, 7, 7, 9]
    by_assistant = EngineSequence(request(turn, privileges=bytes([0, 0, 0, 3, 3, 3, 2])))
    by_user = EngineSequence(request(turn, privileges=bytes([0, 0, 0, 2, 2, 2, 2])))
    scheduler.add(by_assistant)
    scheduler.add(by_user)
    step(scheduler)
    assert (by_assistant.cached_len, by_user.cached_len) == (6, 2)


def test_a_scored_prompt_neither_reads_nor_fills_the_cache():
    scheduler = make(block_size=2)
    for prompt_scored in (True, True, False):
        sequence = EngineSequence(request(list(range(7)), score_prompt=prompt_scored))
        scheduler.add(sequence)
        step(scheduler)
        assert sequence.cached_len == 0
        scheduler.remove(sequence)
        assert scheduler.pool.num_cached == (0 if prompt_scored else 3)


@pytest.mark.parametrize(("budget", "max_running"), [(3, 4), (4, 0)])
def test_every_running_sequence_must_fit_in_the_budget(budget, max_running):
    with pytest.raises(ValueError, match="max_running <= max_batch_tokens"):
        make(budget=budget, max_running=max_running)
