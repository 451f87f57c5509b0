"""A pytest plugin for openai-python's tests: before each, the store holds what their fixed ids name.

They were written for a mock, which has an answer for every id. It is loaded into the environment that runs them, next
to the client they test, and writes with the store's own interface into the file of a running server.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from smelt.store.completions import Completions, StoredCompletion
from smelt.store.database import Database
from smelt.store.location import Location, locate
from smelt.store.models import FineTune, FineTunes

COMPLETION_ID = "completion_id"
MODEL_ID = "ft:gpt-4o-mini:acemeco:suffix:abc123"
TENANT = ""  # their server asks for no key

# OpenAI's description, and so its strict client, has assistants' messages only in the list of a request's messages.
_MESSAGES = ({"role": "assistant", "content": "Hello! How can I help?"},)
_RESPONSE = {
    "id": COMPLETION_ID,
    "object": "chat.completion",
    "created": 1_738_960_610,
    "model": "gpt-4o-mini",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    "service_tier": "default",
    "system_fingerprint": "fp_seeded",
}


@pytest.fixture(scope="session")
def store() -> Iterator[Database]:
    """The server's store, opened beside it."""
    location = locate(os.environ["SMELT_STORE"])
    assert isinstance(location, Location)
    with closing(Database.open(location)) as database:
        yield database


@pytest.fixture(autouse=True)
def _seeded(store: Database) -> None:
    completions, models = Completions(store), FineTunes(store)
    completions.delete(TENANT, COMPLETION_ID)
    models.delete(TENANT, MODEL_ID)
    completions.add(
        StoredCompletion(
            id=COMPLETION_ID,
            tenant=TENANT,
            created_ns=1_738_960_610 * 10**9,
            model="gpt-4o-mini",
            request_id="req_seeded",
            request={"model": "gpt-4o-mini", "store": True},
            response=_RESPONSE,
            messages=_MESSAGES,
        )
    )
    models.add(FineTune(id=MODEL_ID, tenant=TENANT, created_ns=time.time_ns(), base_model="gpt-4o-mini"))
