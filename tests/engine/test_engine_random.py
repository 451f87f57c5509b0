"""Random arrivals, aborts, failures and memory pressure: whatever happens, answers and blocks stay right."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from smelt.core.errors import ContextLengthError, OverloadedError
from smelt.core.sampling import FinishReason
from smelt.engine.engine import Engine
from smelt.engine.requests import EngineRequest
from tests.engine.fakes import VOCAB, Answer, FakeGrammar, FakeRunner, collect, expected_answer, request

tokens = st.integers(0, VOCAB - 1)
PREFIXES = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2], [1, 2, 3, 4, 9, 9, 9, 9, 1], [5] * 14)


@st.composite
def requests(draw: st.DrawFn) -> EngineRequest:
    """Prompts that often share a beginning, with every option that changes an answer."""
    prefix = draw(st.sampled_from(PREFIXES))
    prompt = [*prefix[: draw(st.integers(0, len(prefix)))], *draw(st.lists(tokens, max_size=6))] or [0]
    privileges = bytes(draw(st.sampled_from([0, 0, 2])) for _ in prompt)
    options: dict[str, Any] = {
        "privileges": privileges,
        "tenant": draw(st.sampled_from(["", "", "other"])),
        "temperature": draw(st.sampled_from([0.0, 1.0])),
        "seed": draw(st.integers(-3, 3)),
        "max_new_tokens": draw(st.integers(0, 12)),
        "stop_ids": draw(st.sampled_from([frozenset(), frozenset({3})])),
        "score_prompt": draw(st.sampled_from([False, False, True])),
    }
    if draw(st.booleans()):
        options |= {
            "top_p": draw(st.sampled_from([0.5, 1.0])),
            "presence_penalty": draw(st.sampled_from([0.0, 1.5])),
            "frequency_penalty": draw(st.sampled_from([0.0, -0.5])),
            "logit_bias": draw(st.dictionaries(tokens, st.sampled_from([-2.0, 3.0]), max_size=2)),
            "top_logprobs": draw(st.sampled_from([None, 0, 3])),
        }
    if draw(st.sampled_from([False, False, True])):
        options["matcher"] = FakeGrammar(draw(st.integers(0, 5)), fails_after=draw(st.sampled_from([None, None, 2])))
    return request(prompt, **options)


class EngineMachine(RuleBasedStateMachine):
    """Drives an Engine over a FakeRunner; every invariant is checked after every rule."""

    @initialize(
        num_blocks=st.integers(4, 14),
        block_size=st.integers(1, 5),
        max_running=st.integers(1, 5),
        extra_budget=st.sampled_from([0, 1, 3, 30]),
    )
    def start(self, num_blocks: int, block_size: int, max_running: int, extra_budget: int) -> None:
        logging.getLogger("smelt.engine").setLevel(logging.CRITICAL)
        self.runner = FakeRunner(num_blocks=num_blocks, block_size=block_size)
        self.budget = max_running + extra_budget
        self.engine = Engine(
            self.runner,
            context_len=40,
            max_batch_tokens=self.budget,
            max_running=max_running,
            max_waiting=4,
        )
        self.requests: dict[str, EngineRequest] = {}
        self.answers: dict[str, Answer] = {}
        self.aborted: set[str] = set()
        self.num_failures = 0

    @rule(one=requests())
    def add(self, one: EngineRequest) -> None:
        one.id = f"r{len(self.requests)}"
        fits = len(one.prompt_ids) + max(one.max_new_tokens - 1, 0) <= self.runner.num_blocks * self.runner.block_size
        try:
            self.engine.add(one)
        except ContextLengthError:
            assert not fits
        except OverloadedError:
            assert len([n for n in self.requests if self._lives(n)]) == self.engine.max_live
        else:
            assert fits
            self.requests[one.id] = one
            self.answers[one.id] = Answer()

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            collect(self.engine.step(), self.answers)
            self.engine.check_integrity()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        if self.engine.abort(name):
            self.aborted.add(name)

    @rule()
    def fail_a_step(self) -> None:
        self.runner.fail_next = True

    @invariant()
    def nothing_leaks(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()
            assert not self.runner.violations

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.runner.fail_next = False
        for _ in range(5000):
            if not self.engine.has_work:
                break
            self.step(1)
        assert not self.engine.has_work, "the engine makes no progress"
        assert self.engine.stats().num_blocks_used == 0
        assert not self.runner.violations
        assert max((size for size, _ in self.runner.batch_sizes), default=0) <= self.budget
        for name, one in self.requests.items():
            self._compare(one, self.answers[name])

    def _lives(self, name: str) -> bool:
        return self.answers[name].reason is None and name not in self.aborted

    def _compare(self, one: EngineRequest, answer: Answer) -> None:
        """A complete answer equals the oracle's; one that was cut short is a beginning of it."""
        assert answer.reason is not None, "an admitted request without a terminal event"
        if isinstance(one.matcher, FakeGrammar) and one.matcher.fails_after is not None:
            whole = expected_answer(dataclasses.replace(one, matcher=FakeGrammar(one.matcher.seed)))
            if len(whole.tokens) > one.matcher.fails_after:
                whole.tokens = whole.tokens[: one.matcher.fails_after]
                whole.logprobs = whole.logprobs[: one.matcher.fails_after]
                whole.reason, whole.error = FinishReason.ERROR, "internal failure (ValueError)"
        else:
            whole = expected_answer(one)
        if answer.reason is FinishReason.ABORT or answer.error == "the fake model failed":
            assert answer.tokens == whole.tokens[: len(answer.tokens)]
            assert answer.logprobs == whole.logprobs[: len(answer.logprobs)]
            assert answer.prompt in (None, whole.prompt)
        else:
            assert answer.same_as(whole), f"found {answer}, expected {whole}"


_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
TestRandomRequests = EngineMachine.TestCase
TestRandomRequests.settings = settings(max_examples=300, stateful_step_count=25, **_COMMON)


class _Long(EngineMachine):
    pass


TestManyRandomRequests = pytest.mark.timeout(1200)(pytest.mark.slow(_Long.TestCase))
TestManyRandomRequests.settings = settings(max_examples=3000, stateful_step_count=50, **_COMMON)
