"""An old database becomes a present one, whatever step it stands at; a newer one is left alone."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, inspect, text

from smelt.core.errors import StoreError
from smelt.store import migrations
from smelt.store.completions import Completions
from smelt.store.database import Database
from smelt.store.location import Location
from smelt.store.tables import metadata
from tests.store.conftest import completion


def _shape(connection: Connection) -> dict[str, Any]:
    """Tables, columns, keys and indexes, as the database tells them."""
    found = inspect(connection)
    return {
        name: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)],
            found.get_pk_constraint(name)["constrained_columns"],
            [(k["constrained_columns"], k["referred_table"], k["options"]) for k in found.get_foreign_keys(name)],
            sorted((i["name"], i["column_names"]) for i in found.get_indexes(name)),
        )
        for name in found.get_table_names()
    }


def test_the_steps_make_the_tables_of_today() -> None:
    engines = create_engine("sqlite://"), create_engine("sqlite://")
    with engines[0].connect() as migrated, engines[1].connect() as present:
        migrations.migrate(migrated)
        metadata.create_all(present)
        assert _shape(migrated) == _shape(present)
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("version", range(len(migrations.STEPS)))
def test_every_older_version_is_brought_up(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = Location(path=tmp_path / "store.db")
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "STEPS", migrations.STEPS[:version])
        patch.setattr("smelt.store.database.STEPS", migrations.STEPS)
        with closing(Database.open(location)) as old:
            if version:
                Completions(old).add(completion(1, id="old"))
    with closing(Database.open(location)) as database, database.reading() as connection:
        assert migrations.version_of(connection) == len(migrations.STEPS)
        assert set(inspect(connection).get_table_names()) == set(metadata.tables)
        if version:
            assert Completions(database).get("", "old")


def test_a_newer_store_is_not_touched(database: Database, location: Location) -> None:
    with database.writing() as connection:
        connection.execute(text("INSERT INTO migrations (version, applied_ns) VALUES (999, 0)"))
    with pytest.raises(StoreError, match="newer smelt: it is at version 999"):
        Database.open(location)


def test_a_step_that_fails_leaves_nothing(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (*migrations.STEPS, ("CREATE TABLE half (id TEXT)", "CREATE NONSENSE"))
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "STEPS", broken)
        patch.setattr("smelt.store.database.STEPS", broken)
        with pytest.raises(StoreError, match="syntax|NONSENSE"):
            Database.open(location)
    with closing(Database.open(location)) as database, database.reading() as connection:
        assert set(inspect(connection).get_table_names()) == set(metadata.tables)


def test_many_open_a_new_store_at_once(location: Location) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with closing(Database.open(location)) as database:
                Completions(database).add(completion(1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
