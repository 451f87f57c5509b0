"""Clients of an application in this process, over a scripted model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from smelt.server.app import create_app
from smelt.server.settings import Settings
from tests.server.fake import FakeLLM

CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "gpt-4o-mini", "prompt": "Once"}
Post = Callable[..., Any]


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds or leaves anything in the user's own store."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def client(llm: FakeLLM) -> Iterator[TestClient]:
    app = create_app(llm, Settings())
    with closing(app.state.service.storage), TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture
def chat(client: TestClient) -> Post:
    """Posts the smallest chat request with the given fields in it."""
    return lambda **fields: client.post("/v1/chat/completions", json=CHAT | fields)


@pytest.fixture
def complete(client: TestClient) -> Post:
    """Posts the smallest completion request with the given fields in it."""
    return lambda **fields: client.post("/v1/completions", json=COMPLETION | fields)
