"""What the engine promises of one answer, of its ends, and of failures; each over the fake model."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from smelt.core.errors import ContextLengthError, EngineError, InvalidRequestError, OverloadedError
from smelt.core.sampling import FinishReason
from smelt.core.step import StepBatch, StepResult
from smelt.engine.engine import Engine
from smelt.engine.requests import EngineRequest
from tests.engine.fakes import VOCAB, Answer, FakeGrammar, FakeRunner, collect, expected_answer, request, run


@pytest.fixture(autouse=True)
def _quiet_log(caplog):
    caplog.set_level(logging.CRITICAL, "smelt.engine")


def make(**options: object) -> Engine:
    runner = FakeRunner(num_blocks=options.pop("num_blocks", 64), block_size=options.pop("block_size", 4))  # type: ignore[arg-type]
    return Engine(runner, **{"context_len": 200, **options})  # type: ignore[arg-type]


def assert_expected(answers: dict[str, Answer], *requests: EngineRequest) -> None:
    assert set(answers) == {one.id for one in requests}
    for one in requests:
        expected = expected_answer(one)
        assert answers[one.id].same_as(expected), f"found {answers[one.id]}, expected {expected}"


def many(count: int = 6) -> list[EngineRequest]:
    """Requests that share prefixes and differ in all that shapes an answer."""
    shared = [1, 2, 3, 4, 5, 6, 7, 8]
    return [
        request(
            shared[: 2 + i] + [i],
            id=f"m{i}",
            max_new_tokens=10 + i,
            temperature=float(i % 2),
            seed=i,
            presence_penalty=float(i % 3),
            matcher=FakeGrammar(i) if i % 3 == 2 else None,
            top_logprobs=2 if i % 4 == 3 else None,
            score_prompt=i == 4,
        )
        for i in range(count)
    ]


# --- the same answer whatever happens around it ---------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_running": 1, "max_batch_tokens": 1},
        {"max_running": 2, "max_batch_tokens": 3},
        {"block_size": 1},
        {"block_size": 16},
        {"num_blocks": 9, "block_size": 3},  # memory for one and a half answers: preemption all the time
    ],
    ids=str,
)
def test_an_answer_is_its_own(options):
    """Chunk sizes, batch mates, block sizes and preemption change nothing."""
    engine = make(**options)
    assert_expected(run(engine, *many()), *many())
    if "num_blocks" in options:
        assert engine.stats().num_preemptions > 0


def test_a_cached_prompt_gives_the_same_answer():
    engine = make()
    prompt = list(range(1, 11)) * 2
    first = run(engine, request(prompt, temperature=1.0, seed=3))["r"]
    again = run(engine, request(prompt, temperature=1.0, seed=3))["r"]
    assert (first.cached_len, again.cached_len) == (0, 16)
    assert again.same_as(first)
    assert engine.stats().cached_tokens == 16


def test_other_tenants_adapters_media_and_privileges_share_nothing():
    engine = make()
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    run(engine, request(prompt))
    for fields in ({"tenant": "t"}, {"adapter": "a"}, {"media": [b"m"]}, {"privileges": bytes([2] * 9)}):
        assert run(engine, request(prompt, **fields))["r"].cached_len == 0
    assert run(engine, request(prompt))["r"].cached_len == 8


def test_a_preempted_request_reports_the_cache_hit_of_its_first_admission():
    """After a preemption it finds its own blocks; those were not a saving for the client."""
    engine = make(num_blocks=9, block_size=3)
    answers = run(engine, *[request([i] * 5, id=f"r{i}", max_new_tokens=12) for i in range(3)])
    assert engine.stats().num_preemptions > 0
    assert {answer.cached_len for answer in answers.values()} == {0}
    assert engine.stats().cached_tokens == 0


# --- ends -----------------------------------------------------------------------------------------


def test_a_stop_id_ends_the_answer_and_is_not_reported():
    whole = run(make(), request([1, 2], max_new_tokens=20))["r"].tokens
    stop = whole[5]
    answer = run(make(), request([1, 2], max_new_tokens=20, stop_ids=frozenset({stop})))["r"]
    assert answer.tokens == whole[: whole.index(stop)]
    assert answer.reason is FinishReason.STOP


def test_length_ends_the_answer_with_its_last_token():
    answer = run(make(), request([1, 2], max_new_tokens=3))["r"]
    assert len(answer.tokens) == 3 and answer.reason is FinishReason.LENGTH


def test_zero_new_tokens_compute_nothing():
    engine = make()
    answer = run(engine, request([1, 2], max_new_tokens=0))["r"]
    assert answer.reason is FinishReason.LENGTH and engine.stats().num_steps == 0


@pytest.mark.parametrize("prompt_len", [1, 2, 9])
@pytest.mark.parametrize("budget", [1, 3, 32])
def test_a_scored_prompt_joins_its_chunks_without_a_seam(prompt_len, budget):
    one = request([5, 3, 8, 1, 9, 2, 2, 7, 4][:prompt_len], score_prompt=True, max_new_tokens=0, top_logprobs=3)
    answers = run(make(max_running=1, max_batch_tokens=budget), one)
    assert len(answers["r"].prompt or ()) == prompt_len
    assert_expected(answers, one)


def test_a_prompt_preempted_while_scored_reports_each_token_once():
    """8 of 13 tokens scored two by two, then preempted, then computed again three by three: rows overlap askew."""
    engine = make(num_blocks=11, block_size=2, max_running=2, max_batch_tokens=3)
    old = request([1, 2, 3, 4], id="old", max_new_tokens=7)
    scored = request([5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 5, 6, 7], id="new", score_prompt=True, top_logprobs=1)
    answers: dict[str, Answer] = {}
    engine.add(old)
    for _ in range(2):
        collect(engine.step(), answers)
    engine.add(scored)
    for _ in range(4):
        collect(engine.step(), answers)
    sequence = engine._sequences["new"]
    assert (sequence.num_computed, len(sequence.prompt_logprobs or ())) == (8, 9)
    collect(engine.step(), answers)
    assert engine.stats().num_preemptions == 1
    while engine.has_work:
        collect(engine.step(), answers)
    assert_expected(answers, old, scored)


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_abort_at_any_state_frees_at_once_and_ends_once(steps):
    engine = make(max_running=1, max_batch_tokens=4)
    answers: dict[str, Answer] = {}
    engine.add(request(list(range(10)), id="a", max_new_tokens=5))
    engine.add(request([1], id="b"))
    for _ in range(steps):
        collect(engine.step(), answers)
    assert engine.abort("a") and engine.abort("b")
    assert not engine.abort("a") and not engine.abort("unknown")
    assert engine.stats().num_blocks_used == 0
    while engine.has_work:
        collect(engine.step(), answers)
    assert {name: answer.reason for name, answer in answers.items()} == dict.fromkeys("ab", FinishReason.ABORT)


# --- grammars -------------------------------------------------------------------------------------


class Script:
    """A grammar with one sentence; from `free_from` on everything goes."""

    def __init__(self, *sentence: int, free_from: int = 1000) -> None:
        self.sentence, self.free_from, self.place = list(sentence), free_from, 0

    def fill_mask(self, row: np.ndarray) -> None:
        row[0] = 0xFFFFFFFF if self.place >= self.free_from else 1 << self.sentence[self.place]

    def advance(self, token_id: int) -> None:
        if self.place < self.free_from and token_id != self.sentence[self.place]:
            raise EngineError("off the script")
        self.place += 1

    def forced_tokens(self) -> list[int]:
        return self.sentence[self.place : self.free_from]


def test_forced_tokens_take_one_step_and_not_one_each():
    engine = make()
    answer = run(engine, request([1], max_new_tokens=7, matcher=Script(4, 5, 6, 7, 8, free_from=5)))["r"]
    assert answer.tokens[:5] == [4, 5, 6, 7, 8] and len(answer.tokens) == 7
    assert engine.stats().num_steps == 2  # the prompt and all forced tokens are one chunk


def test_forced_tokens_stop_where_the_answer_does():
    limited = run(make(), request([1], max_new_tokens=2, matcher=Script(4, 5, 6)))["r"]
    assert (limited.tokens, limited.reason) == ([4, 5], FinishReason.LENGTH)
    stopped = run(make(), request([1], max_new_tokens=9, stop_ids=frozenset({6}), matcher=Script(4, 5, 6)))["r"]
    assert (stopped.tokens, stopped.reason) == ([4, 5], FinishReason.STOP)


def test_asking_for_logprobs_changes_no_token():
    """Forced tokens are then drawn under one-token masks, so each has its own log-probability."""
    fields = {"temperature": 1.0, "seed": 5, "max_new_tokens": 9, "frequency_penalty": 1.0}
    plain = run(make(), request([1], matcher=Script(4, 5, 5, 4, free_from=4), **fields))["r"]
    asked = run(make(), request([1], matcher=Script(4, 5, 5, 4, free_from=4), top_logprobs=2, **fields))["r"]
    assert asked.tokens == plain.tokens
    assert all(logprob is not None and len(logprob.top) == 2 for logprob in asked.logprobs)


class Broken(Script):
    """Fails in the method named."""

    def __init__(self, where: str) -> None:
        super().__init__(free_from=0)
        self.where = where

    def fill_mask(self, row: np.ndarray) -> None:
        if self.where == "fill_mask":
            raise ValueError("secret words of the request")
        row[0] = 0 if self.where == "no token" else 0xFFFFFFFF

    def advance(self, token_id: int) -> None:
        if self.where == "advance":
            raise EngineError("the grammar refuses")

    def forced_tokens(self) -> list[int]:
        if self.where == "forced_tokens":
            raise RuntimeError("broken")
        return [VOCAB] if self.where == "no such token" else []


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("fill_mask", "internal failure (ValueError)"),
        ("advance", "the grammar refuses"),
        ("forced_tokens", "internal failure (RuntimeError)"),
        ("no token", "the grammar allows no token here"),
        ("no such token", f"the grammar forces token id {VOCAB}, ids are 0 to {VOCAB - 1}"),
    ],
)
def test_a_broken_matcher_ends_its_own_request_only(where, message):
    """A foreign exception shows its kind and not its words, which may quote the request."""
    engine = make()
    mates = [request([1, 2], id="before"), request([3], id="after", matcher=FakeGrammar(1))]
    answers = run(engine, mates[0], request([9], id="broken", matcher=Broken(where)), mates[1])
    broken = answers.pop("broken")
    assert (broken.reason, broken.error) == (FinishReason.ERROR, message)
    assert_expected(answers, *mates)


# --- failures of the model ------------------------------------------------------------------------


def test_a_failed_step_ends_its_requests_and_poisons_nothing():
    """What the step was computing, and all it read, is not found again; the next answer is right."""
    engine = make()
    runner: FakeRunner = engine._runner  # type: ignore[assignment]
    prompt = list(range(10))
    run(engine, request(prompt))
    engine.add(request(prompt, id="a"))
    engine.add(request(prompt, id="b"))
    runner.fail_next = True
    answers: dict[str, Answer] = {}
    collect(engine.step(), answers)
    assert {(a.reason, a.error) for a in answers.values()} == {(FinishReason.ERROR, "the fake model failed")}
    assert not engine.has_work and engine.stats().num_failed_steps == 1
    engine.check_integrity()
    after = request(prompt)
    answers = run(engine, after)
    assert answers["r"].cached_len == 0
    assert_expected(answers, after)


class Garbled(FakeRunner):
    """Reports a token that does not exist for the second sequence, or too few tokens."""

    def __init__(self, *, short: bool) -> None:
        super().__init__()
        self.short = short

    def step(self, batch: StepBatch) -> StepResult:
        result = super().step(batch)
        if self.short:
            result.token_ids = result.token_ids[:-1]
        elif batch.num_sequences > 1:
            result.token_ids[1] = VOCAB
        return result


def test_a_token_that_does_not_exist_ends_its_own_request_only():
    mates = [request([1], id="a"), request([2], id="b")]
    answers = run(Engine(Garbled(short=False), context_len=50), *mates)
    assert answers.pop("b").reason is FinishReason.ERROR
    assert_expected(answers, mates[0])


def test_a_result_of_the_wrong_size_is_a_failed_step():
    answer = run(Engine(Garbled(short=True), context_len=50), request([1]))["r"]
    assert (answer.reason, answer.error) == (FinishReason.ERROR, "sought 1 token ids from the runner, found 0")


def test_fail_all_is_a_way_out():
    engine = make()
    engine.add(request([1] * 9, id="a"))
    engine.step()
    engine.add(request([2], id="b"))
    ends = engine.fail_all(KeyError("x"))
    assert [(e.request_id, e.reason, e.error) for e in ends] == [  # type: ignore[union-attr]
        (name, FinishReason.ERROR, "internal failure (KeyError)") for name in "ab"
    ]
    engine.check_integrity()
    assert not engine.has_work
    assert_expected(run(engine, request([1] * 9)), request([1] * 9))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "error", "words"),
    [
        (request([]), InvalidRequestError, "at least one token"),
        (request([1], max_new_tokens=-1), InvalidRequestError, "max_new_tokens >= 0"),
        (request([1, VOCAB]), InvalidRequestError, f"token ids are 0 to {VOCAB - 1}; found 1 to {VOCAB}"),
        (request([-1]), InvalidRequestError, "token ids are 0"),
        (request([1], logit_bias={VOCAB: 1.0}), InvalidRequestError, "token ids are 0"),
        (request([1], privileges=b""), EngineError, "a privilege for each of 1 tokens"),
        (request([1] * 30, max_new_tokens=11), ContextLengthError, "context window is 40 tokens; found 30"),
        (request([1] * 20, max_new_tokens=14), ContextLengthError, "keys and values holds 32 tokens; found 20"),
    ],
)
def test_what_can_never_run_is_refused_at_the_door(one, error, words):
    engine = make(context_len=40, num_blocks=8)
    with pytest.raises(error, match=words):
        engine.add(one)
    assert not engine.has_work


def test_the_largest_answer_that_fits_is_answered():
    """The last token's keys and values are never needed, so prompt + new = pool + 1 fits exactly."""
    engine = make(context_len=40, num_blocks=8)
    one = request([1] * 20, max_new_tokens=13)
    assert_expected(run(engine, one), one)


def test_a_full_queue_says_so_and_empties():
    engine = make(max_running=1, max_waiting=1, max_batch_tokens=8)
    run_now, waits = request([1], id="a"), request([2], id="b")
    engine.add(run_now)
    engine.add(waits)
    with pytest.raises(OverloadedError, match="2 requests are running or waiting"):
        engine.add(request([3], id="c"))
    with pytest.raises(EngineError, match="already in use"):
        engine.add(request([3], id="a"))
    answers = run(engine)
    assert_expected(answers, run_now, waits)
    engine.add(request([3], id="a"))


def test_stats_count():
    engine = make(num_blocks=10)
    run(engine, request([1] * 5, id="a", max_new_tokens=4), request([2] * 3, id="b", max_new_tokens=2))
    engine.add(request([1] * 5, id="c"))
    engine.step()
    engine.add(request([3], id="d"))
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks) == (1, 1, 10)
    assert (stats.num_blocks_used, stats.num_blocks_cached) == (2, 2)
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (14, 4, 7)


def test_the_engine_room_imports_no_torch():
    import subprocess

    code = "import sys, smelt.engine.loop; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
