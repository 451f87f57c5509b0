"""`smelt serve` as a process: its first page, its memory, what it loads, how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from smelt.cli.serve import first_page
from smelt.server.serve import Ready
from tests.server.fake import FakeLLM

MEMORY_LIMIT_BYTES = 300e6


class Served:
    """A `smelt serve` process on a port of its own choosing, and what it printed."""

    def __init__(self, folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SMELT_")}
        command = [
            sys.executable,
            "-c",
            "from smelt.cli import main; main()",
            "serve",
            "-m",
            str(folder),
            "--port",
            "0",
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stdout is not None
        lines: list[str] = []
        while line := self.process.stdout.readline():
            lines.append(line)
            if "Ctrl-C stops" in line:
                break
        self.page = "".join(lines)
        found = re.search(r"http://127\.0\.0\.1:\d+", self.page)
        assert found, self.page
        self.url = found[0]


@pytest.fixture(scope="module")
def served(served_folder: Path) -> Iterator[Served]:
    server = Served(served_folder)
    yield server
    server.process.send_signal(signal.SIGINT)
    server.process.wait(20)
    assert server.process.stdout is not None
    server.process.stdout.close()


def test_the_first_page_says_what_was_chosen_and_what_to_do(served: Served) -> None:
    """The URL, the limits, the machine and why, three lines of Python that run, the next step."""
    for words in ("/v1", "context", "threads", "from openai import OpenAI", "gpt-4o-mini", "next:"):
        assert words in served.page
    snippet = "\n".join(line.strip() for line in served.page.splitlines() if re.match(r"  (from|client|print)", line))
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("names", "command"), [(("spark",), "/v1   "), (("my model",), "/v1 -m 'my model'   ")])
def test_the_next_step_names_the_model(names: tuple[str, ...], command: str) -> None:
    """`smelt chat --url` asks for the shipped model unless told otherwise: with another one it got a 404."""
    model = FakeLLM()
    model.name = names[0]
    page = first_page(
        Ready(base_url="http://127.0.0.1:1/v1", model=model, names=names, needs_key=False), threads=1, seconds=0
    )
    assert f"smelt chat --url http://127.0.0.1:1{command}" in page


def test_it_stays_small_and_loads_no_torch(served: Served) -> None:
    """After real work: under 300 MB resident, and no torch library mapped."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello " * 200}], "max_tokens": 50}
    assert httpx.post(served.url + "/v1/chat/completions", json=body, timeout=60).status_code == 200
    assert psutil.Process(served.process.pid).memory_info().rss < MEMORY_LIMIT_BYTES
    assert "torch" not in Path(f"/proc/{served.process.pid}/maps").read_text()


def test_it_answers_soon_after_it_is_started(served_folder: Path) -> None:
    """The goal is 2 s on a quiet machine; the best of three leaves room for a busy one."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        server = Served(served_folder)
        assert httpx.get(server.url + "/health", timeout=10).status_code == 200
        best = min(best, time.perf_counter() - start)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) in (0, -signal.SIGINT, 130)
        assert server.process.stdout is not None
        server.process.stdout.close()
    assert best < 5
