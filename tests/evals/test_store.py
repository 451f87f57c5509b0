"""Kept replies: found again, safe from kills, never mixed up between models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.core.messages import Message, ToolCall
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams, Usage
from smelt.evals.cases import Case, Reply
from smelt.evals.store import Kept, Store, key_of
from smelt.evals.suite import run
from tests.evals.test_suite import Echo


def question(text: str, temperature: float = 0.0) -> Case:
    request = ChatRequest(messages=(Message.of("user", text),), params=SamplingParams(temperature=temperature))
    return Case(suite="s", language="en", grader="phrases", request=request, phrases=(text,))


calls = st.builds(ToolCall, id=st.text(max_size=3), name=st.text(max_size=3), arguments=st.text(max_size=9))
messages = st.builds(
    lambda text, made: (
        Message.of("assistant", text, tool_calls=made) if text else Message("assistant", tool_calls=made)
    ),
    st.text(max_size=20),
    st.lists(calls, max_size=2).map(tuple),
)
replies = st.builds(
    Reply,
    message=st.none() | messages,
    scores=st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 9)), max_size=3).map(tuple),
    usage=st.builds(Usage, st.integers(0, 9), st.integers(0, 9)),
    refused=st.text(max_size=5),
)


@settings(max_examples=30)
@given(st.lists(replies, max_size=4))
def test_what_is_kept_is_found_again(tmp_path_factory: object, kept: list[Reply]) -> None:
    path = tmp_path_factory.mktemp("store") / "rows.jsonl"  # type: ignore[attr-defined]
    store = Store(path)
    for i, reply in enumerate(kept):
        store.put(str(i), question("q"), Kept(reply=reply, began=1.0, seconds=0.5))
    store.close()
    again = Store(path)
    assert len(again) == len(kept)
    for i, reply in enumerate(kept):
        assert again.get(str(i)) == Kept(reply=reply, began=1.0, seconds=0.5)


def test_the_key_is_model_request_and_parameters() -> None:
    keys = {
        key_of("m", question("a")),
        key_of("n", question("a")),
        key_of("m", question("b")),
        key_of("m", question("a", 0.5)),
    }
    assert len(keys) == 4
    assert key_of("m", question("a")) == key_of("m", question("a"))


def test_a_torn_line_costs_one_question(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    cases = [question(f"t{i}") for i in range(4)]
    store = Store(path)
    run(Echo(), cases, store=store, workers=1)
    store.close()
    path.write_bytes(path.read_bytes()[:-9])
    for expected in (1, 0):
        echo, store = Echo(), Store(path)
        rows = run(echo, cases, store=store, workers=1)
        store.close()
        assert echo.asked == expected
        assert all(row.grade is not None and row.grade.exact for row in rows)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """kill -9 in the middle: the rerun asks only what has no reply, and the rows are those of an unbroken run."""
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from smelt.evals.store import Store
        from smelt.evals.suite import run
        from tests.evals.test_store import question
        from tests.evals.test_suite import Echo

        class Slow(Echo):
            def chat(self, request):
                time.sleep(0.01)
                return super().chat(request)

        run(Slow(), [question(f"t{{i}}") for i in range(2000)], store=Store(Path({str(tmp_path / "rows.jsonl")!r})))
        """
    )
    root = Path(__file__).resolve().parents[2]
    worker = subprocess.Popen([sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    path = tmp_path / "rows.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not path.exists() or path.read_bytes().count(b"\n") < 50):
        time.sleep(0.02)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    echo, store = Echo(), Store(path)
    num_kept = len(store)
    assert 50 <= num_kept < 2000
    cases = [question(f"t{i}") for i in range(2000)]
    rows = run(echo, cases, store=store)
    store.close()
    assert echo.asked == 2000 - num_kept
    assert [row.question for row in rows] == cases
    assert all(row.grade is not None and row.grade.exact for row in rows)


def test_times_are_kept_as_they_are_told(tmp_path: Path) -> None:
    """A rerun once said 0.03 seconds where the run had said 0.02: the store had rounded what the run had not."""
    kept = Kept.of(Reply(refused="no"), 1795348306.7496012, 0.0249987)
    store = Store(tmp_path / "a.jsonl")
    store.put("key", question("q"), kept)
    store.close()
    assert Store(tmp_path / "a.jsonl").get("key") == kept
