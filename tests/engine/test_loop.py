"""The thread around the engine: every admitted request ends exactly once, whoever raises, leaves or closes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from smelt.core.errors import ContextLengthError, EngineError, OverloadedError
from smelt.core.sampling import FinishReason
from smelt.core.step import StepBatch, StepResult
from smelt.engine.engine import Engine
from smelt.engine.loop import EngineLoop
from smelt.engine.requests import Ended, EngineEvent, EngineRequest, PromptScored
from tests.engine.fakes import Answer, FakeRunner, expected_answer, request

SECONDS = 30.0  # only a hang takes this long


class Client:
    """Collects one request's events; `when_first` runs on the loop's thread at the first one."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.started = threading.Event()
        self.done = threading.Event()
        self.threads: set[str] = set()

    def __call__(self, event: EngineEvent) -> None:
        self.answer.add(event)
        self.threads.add(threading.current_thread().name)
        self.started.set()
        if isinstance(event, Ended):
            self.done.set()


class GatedRunner(FakeRunner):
    """Steps only while the gate is open."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate = threading.Event()
        self.inside = threading.Event()

    def step(self, batch: StepBatch) -> StepResult:
        self.inside.set()
        assert self.gate.wait(SECONDS)
        return super().step(batch)


@pytest.fixture(autouse=True)
def _quiet_log(caplog):
    caplog.set_level(logging.CRITICAL, "smelt.engine")


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner()


@pytest.fixture
def engine(runner: GatedRunner) -> Engine:
    return Engine(runner, context_len=200, max_running=2, max_waiting=2, max_batch_tokens=8)


@pytest.fixture
def loop(runner: GatedRunner, engine: Engine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine)
    yield loop
    runner.gate.set()
    loop.close()
    assert not loop._thread.is_alive()
    engine.check_integrity()
    assert not engine.has_work


def submit(loop: EngineLoop, one: EngineRequest) -> Client:
    client = Client()
    loop.submit(one, client)
    return client


def test_events_come_in_order_on_one_thread(loop, runner):
    runner.gate.set()
    requests = [request([i], id=f"r{i}", temperature=1.0, seed=i, max_new_tokens=6) for i in range(4)]
    clients = [submit(loop, one) for one in requests]
    for one, client in zip(requests, clients, strict=True):
        assert client.done.wait(SECONDS)
        assert client.answer.same_as(expected_answer(one))
        assert client.threads == {"smelt-engine"}
    late = submit(loop, request([7], id="r0"))  # the loop slept, and the id is free again
    assert late.done.wait(SECONDS)


def test_submit_and_abort_do_not_wait_for_a_running_step(loop, runner):
    """An event loop calls them; a step on a long prompt takes a second."""
    first = submit(loop, request([1], id="a"))
    assert runner.inside.wait(SECONDS)  # a step is under way and will not end before the gate opens
    second = submit(loop, request([2], id="b"))
    loop.abort("a")
    loop.abort("b")
    loop.abort("unknown")
    assert loop.stats().num_running == 1
    runner.gate.set()
    assert first.done.wait(SECONDS) and second.done.wait(SECONDS)
    assert (first.answer.reason, second.answer.reason) == (FinishReason.ABORT, FinishReason.ABORT)
    assert second.answer.tokens == []
    assert len(first.answer.tokens) <= 1  # at most the step that was under way


def test_refusals_reach_the_caller(loop, runner):
    with pytest.raises(ContextLengthError):
        submit(loop, request([1] * 300))
    for i in range(4):
        submit(loop, request([1], id=f"r{i}"))
    with pytest.raises(EngineError, match="already in use"):
        submit(loop, request([1], id="r1"))
    with pytest.raises(OverloadedError, match="4 requests"):
        submit(loop, request([1], id="more"))


def test_a_callback_that_raises_ends_its_own_request(loop, runner):
    heard: list[EngineEvent] = []
    ended = threading.Event()

    def raises(event: EngineEvent) -> None:
        heard.append(event)
        if isinstance(event, Ended):
            ended.set()
        raise RuntimeError("the client is gone")

    # Its first step brings two events, the prompt's report and a token; the second must not be heard.
    loop.submit(request([1], id="bad", max_new_tokens=50, score_prompt=True), raises)
    good_request = request([2], id="good", max_new_tokens=20)
    good = submit(loop, good_request)
    runner.gate.set()
    assert ended.wait(SECONDS) and good.done.wait(SECONDS)
    assert [type(event) for event in heard] == [PromptScored, Ended]
    assert isinstance(heard[-1], Ended) and heard[-1].reason is FinishReason.ABORT
    assert good.answer.same_as(expected_answer(good_request))


def test_close_ends_everything_exactly_once(loop, runner):
    """One running, one waiting, one still in the inbox; the step under way may finish, nothing starts."""
    clients = [submit(loop, request([1] * 20, id="a", max_new_tokens=100))]
    assert runner.inside.wait(SECONDS)
    clients += [submit(loop, request([2], id=name)) for name in "bcd"]
    closer = threading.Thread(target=loop.close)
    closer.start()
    while not loop._closing:
        pass
    with pytest.raises(EngineError, match="shutting down"):
        submit(loop, request([1], id="late"))
    runner.gate.set()
    closer.join(SECONDS)
    assert not closer.is_alive()
    assert [client.answer.reason for client in clients] == [FinishReason.ABORT] * 4
    loop.close()


def test_close_from_a_callback_does_not_wait_for_itself(loop, runner):
    runner.gate.set()
    client = Client()

    def on_event(event: EngineEvent) -> None:
        client(event)
        loop.close()

    loop.submit(request([1], max_new_tokens=50), on_event)
    assert client.done.wait(SECONDS)
    loop._thread.join(SECONDS)
    assert client.answer.reason is FinishReason.ABORT


def test_a_defect_in_the_engine_ends_requests_and_not_the_loop(loop, runner, engine, monkeypatch):
    """The thread must not die with clients waiting on it."""
    runner.gate.set()
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler, "schedule", lambda: 1 / 0)
        client = submit(loop, request([1]))
        assert client.done.wait(SECONDS)
    assert (client.answer.reason, client.answer.error) == (FinishReason.ERROR, "internal failure (ZeroDivisionError)")
    one = request([1])
    client = submit(loop, one)
    assert client.done.wait(SECONDS)
    assert client.answer.same_as(expected_answer(one))


def test_a_request_the_engine_refuses_after_all_still_ends(loop, runner, engine, monkeypatch):
    runner.gate.set()

    def refuse(one: EngineRequest) -> None:
        raise OverloadedError("no room")

    monkeypatch.setattr(engine, "add", refuse)
    client = submit(loop, request([1]))
    assert client.done.wait(SECONDS)
    assert (client.answer.reason, client.answer.error) == (FinishReason.ERROR, "no room")


def test_many_threads_submit_and_abort(runner):
    """Eight threads, a few hundred requests, every third aborted: each ends once, nothing is left."""
    runner.gate.set()
    engine = Engine(runner, context_len=200, max_running=4, max_waiting=1000, max_batch_tokens=16)
    loop = EngineLoop(engine)
    clients: dict[str, Client] = {}

    def work(worker: int) -> None:
        for i in range(30):
            name = f"{worker}-{i}"
            clients[name] = submit(loop, request([worker, i % 11], id=name, max_new_tokens=3, seed=i))
            if i % 3 == 0:
                loop.abort(name)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    for client in clients.values():
        assert client.done.wait(SECONDS)
    loop.close()
    assert len(clients) == 240
    assert all(
        client.answer.reason in (FinishReason.LENGTH, FinishReason.ABORT)
        and (len(client.answer.tokens) == 3) == (client.answer.reason is FinishReason.LENGTH)
        for client in clients.values()
    )
    engine.check_integrity()
