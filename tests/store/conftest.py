"""A store in a file of its own, and in PostgreSQL where SMELT_TEST_POSTGRES names a database that may be emptied."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from smelt.store.completions import StoredCompletion
from smelt.store.database import Database
from smelt.store.ids import timed_id
from smelt.store.location import Location, locate
from smelt.store.tables import metadata

POSTGRES = os.environ.get("SMELT_TEST_POSTGRES", "")


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRES else [])])
def location(request: Any, tmp_path: Path) -> Location:
    """Where a new store may be."""
    found = locate(POSTGRES if request.param == "postgresql" else str(tmp_path / "store.db"))
    assert found is not None
    if request.param == "postgresql":
        engine = create_engine(found.url)
        metadata.drop_all(engine)
        engine.dispose()
    return found


@pytest.fixture
def database(location: Location) -> Iterator[Database]:
    with closing(Database.open(location)) as database:
        yield database


def completion(created_ns: int, **fields: Any) -> StoredCompletion:
    """A small one."""
    completion_id = timed_id("chatcmpl", created_ns)
    told = {
        "id": completion_id,
        "tenant": "",
        "created_ns": created_ns,
        "model": "m",
        "request_id": "req_1",
        "request": {"model": "m"},
        "response": {"id": completion_id, "choices": [{"text": "wörd \u0000"}]},
        "messages": ({"role": "user", "content": "hi"},),
    }
    return StoredCompletion(**(told | fields))
