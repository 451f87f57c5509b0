"""Live servers that get what nobody should send. After each test the server must be as before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.live import Server, running

KEY = "sk-test-0123456789"
MAX_GROWTH_BYTES = 64 * 2**20
_baseline: dict[int, tuple[int, Any]] = {}  # by process: memory and answer before anything bad


@pytest.fixture(scope="session")
def live(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On loopback, without keys; clocks short enough to see them run out."""
    folder = tmp_path_factory.mktemp("live")
    with running(tiny_folder, folder, header_timeout_s="1", body_timeout_s="1.5", send_timeout_s="1") as server:
        _remember(server)
        yield server


@pytest.fixture(scope="session")
def keyed(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a key, room for few requests, and one foreign host and origin allowed."""
    folder = tmp_path_factory.mktemp("keyed")
    settings = {
        "api_keys": f"{KEY},second-key-0123",
        "max_requests": "8",
        "allowed_hosts": "models.example",
        "allowed_origins": "https://app.example",
    }
    with running(tiny_folder, folder, **settings) as server:
        _remember(server)
        yield server


def _remember(server: Server) -> None:
    _probe(server)
    _baseline[server.process.pid] = server.rss_bytes, _probe(server)


def _probe(server: Server) -> Any:
    reply = server.chat(seed=7, temperature=1)
    assert reply.status == 200, reply.body
    return json.loads(reply.body)["choices"]


@pytest.fixture(autouse=True)
def _still_ok(request: pytest.FixtureRequest) -> Iterator[None]:
    """The next request works and answers as before, everything is freed, memory is back."""
    yield
    for name in {"live", "keyed"} & set(request.fixturenames):
        server: Server = request.getfixturevalue(name)
        rss_bytes, answer = _baseline[server.process.pid]
        assert _probe(server) == answer
        server.wait_idle()
        assert server.rss_bytes < rss_bytes + MAX_GROWTH_BYTES


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    """Each input is tried with streaming off and on."""
    return bool(request.param)
