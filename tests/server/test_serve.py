"""A server's life: ready in time and small, three lines that work, an end that keeps nobody waiting."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import smelt.checkpoint
from smelt.server.serve import Ready, load_model
from smelt.server.settings import Settings
from tests.server.fake import FakeLLM
from tests.server.live import NEVER_END, running


def test_a_fetched_model_is_not_called_by_its_commit(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache names folders by commit, and that was the model's id on the API."""
    monkeypatch.setattr(smelt.checkpoint, "resolve_model", lambda name: tiny_folder)
    with contextlib.closing(load_model(Settings(model="owner/name", threads=1))) as llm:
        assert llm.name == "owner/name"
    with contextlib.closing(load_model(Settings(model=str(tiny_folder), threads=1))) as llm:
        assert llm.name == tiny_folder.name


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_under_load(sent: signal.Signals, tiny_folder: Path, tmp_path: Path) -> None:
    """Open streams get shutdown_timeout_s, then they are cut; nothing is printed but the log."""
    with running(tiny_folder, tmp_path, shutdown_timeout_s="1") as server, contextlib.ExitStack() as stack:
        body = json.dumps({"model": "gpt-4o-mini", "prompt": ["x"] * 400, "max_tokens": 900, "logit_bias": NEVER_END})
        connection = stack.enter_context(server.connect())
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body.encode())
        )
        deadline = time.monotonic() + 10
        while not server.metric("smelt_requests_running"):
            assert time.monotonic() < deadline
        server.process.send_signal(sent)
        status = server.process.wait(10)
        assert status in (0, -signal.SIGTERM)
        assert "Traceback" not in server.log.read_text()


def test_serving_imports_no_torch_and_stays_small(tiny_folder: Path, tmp_path: Path) -> None:
    with running(tiny_folder, tmp_path) as server:
        for stream in (False, True):
            assert server.chat(stream=stream, response_format={"type": "text"}).status == 200
        maps = Path(f"/proc/{server.process.pid}/maps")
        if maps.exists():
            assert "torch" not in maps.read_text()
        assert server.rss_bytes < 200e6


@pytest.mark.parametrize("can_chat", [True, False], ids=["chat", "base"])
def test_the_snippet_runs(tiny_folder: Path, tmp_path: Path, can_chat: bool) -> None:
    """A base model's snippet was a chat too, which that model refuses."""
    with running(tiny_folder, tmp_path) as server:
        model = FakeLLM()
        model.can_chat = can_chat
        ready = Ready(base_url=f"{server.base_url}/v1", model=model, names=("tiny", "gpt-4o-mini"), needs_key=False)
        done = subprocess.run([sys.executable, "-c", ready.snippet], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(ready.snippet.splitlines()) == 3
    assert ("chat.completions" in ready.snippet) == can_chat
