"""Keys become tenants, requests become log lines."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
from starlette.testclient import TestClient

from smelt.server.app import create_app
from smelt.server.settings import Settings
from tests.server.conftest import CHAT, COMPLETION
from tests.server.fake import FakeLLM

KEYS = ("first-key-1", "second-key-2")


@pytest.fixture
def keyed(llm: FakeLLM) -> TestClient:
    return TestClient(create_app(llm, Settings(api_keys=",".join(KEYS))), base_url="http://127.0.0.1:8000")


def test_each_key_is_a_tenant_of_its_own(keyed: TestClient, llm: FakeLLM) -> None:
    """No prefix is shared between keys: a hit would tell one of them what the other asked."""
    for key in KEYS:
        headers = {"Authorization": f"Bearer {key}"}
        assert keyed.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
        many = COMPLETION | {"prompt": ["a", "b"]}
        assert keyed.post("/v1/completions", json=many, headers=headers).status_code == 200
    expected = [hashlib.sha256(key.encode()).hexdigest()[:16] for key in KEYS for _ in range(3)]
    assert llm.tenants == expected


def test_without_keys_there_is_one_tenant(client: TestClient, llm: FakeLLM) -> None:
    client.post("/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer whatever"})
    assert llm.tenants == [""]


def test_log_line(keyed: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "smelt.access"):
        reply = keyed.post("/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {KEYS[0]}"})
        keyed.get("/v1/models")
    answered, refused = (json.loads(record.getMessage()) for record in caplog.records if record.name == "smelt.access")
    assert answered["request_id"] == reply.headers["x-request-id"]
    assert (answered["status"], answered["model"], answered["completion_tokens"]) == (200, "fake", 2)
    assert answered["body"] == hashlib.sha256(reply.request.content).hexdigest()[:16]
    assert (refused["status"], refused["path"]) == (401, "/v1/models")
    assert KEYS[0] not in caplog.text
