"""Numbered steps from an empty database to the present one. A step is never changed once released: add another.

Plain SQL that SQLite and PostgreSQL both take, and not `tables`, which tells today's shape and would alter the past.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, func, insert, inspect, select, text

from smelt.core.errors import StoreError
from smelt.store.tables import migrations_done

_STORED_CHAT = (
    """CREATE TABLE chat_completions (
        id TEXT NOT NULL PRIMARY KEY, tenant TEXT NOT NULL, created_ns BIGINT NOT NULL, model TEXT NOT NULL,
        request_id TEXT NOT NULL, request TEXT NOT NULL, response TEXT NOT NULL)""",
    "CREATE INDEX chat_completions_by_age ON chat_completions (tenant, created_ns, id)",
    "CREATE INDEX chat_completions_oldest ON chat_completions (created_ns)",
    """CREATE TABLE chat_messages (
        completion_id TEXT NOT NULL, position INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (completion_id, position),
        FOREIGN KEY (completion_id) REFERENCES chat_completions (id) ON DELETE CASCADE)""",
    """CREATE TABLE chat_metadata (
        completion_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (completion_id, key),
        FOREIGN KEY (completion_id) REFERENCES chat_completions (id) ON DELETE CASCADE)""",
)
_MODELS = (
    """CREATE TABLE models (
        id TEXT NOT NULL PRIMARY KEY, tenant TEXT NOT NULL, created_ns BIGINT NOT NULL, base_model TEXT NOT NULL)""",
)
_TRAINING = (
    """CREATE TABLE training_runs (
        id TEXT NOT NULL PRIMARY KEY, created_ns BIGINT NOT NULL, heard_ns BIGINT NOT NULL, recipe TEXT NOT NULL,
        folder TEXT NOT NULL, settings TEXT NOT NULL, state TEXT NOT NULL)""",
    "CREATE INDEX training_runs_by_age ON training_runs (created_ns, id)",
    """CREATE TABLE training_points (
        run_id TEXT NOT NULL, step BIGINT NOT NULL, total_steps BIGINT NOT NULL, stage TEXT NOT NULL,
        loss DOUBLE PRECISION NOT NULL, num_tokens BIGINT NOT NULL, elapsed_s DOUBLE PRECISION NOT NULL,
        rest TEXT NOT NULL,
        PRIMARY KEY (run_id, step),
        FOREIGN KEY (run_id) REFERENCES training_runs (id) ON DELETE CASCADE)""",
)
STEPS: tuple[tuple[str, ...], ...] = (_STORED_CHAT, _MODELS, _TRAINING)  # version n is what steps 1 to n make

_LEDGER = "CREATE TABLE migrations (version INTEGER NOT NULL PRIMARY KEY, applied_ns BIGINT NOT NULL)"
_POSTGRES_LOCK = "SELECT pg_advisory_xact_lock(7311765)"  # one program migrates at a time; SQLite's writer lock does


def version_of(connection: Connection) -> int:
    """How many steps this database has behind it."""
    if not inspect(connection).has_table(migrations_done.name):
        return 0
    return connection.scalar(select(func.coalesce(func.max(migrations_done.c.version), 0))) or 0


def migrate(connection: Connection) -> None:
    """Apply what is missing, within the caller's transaction: all of it or nothing.

    Raises StoreError for a database of a newer smelt.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(_POSTGRES_LOCK))
    version = version_of(connection)
    if version > len(STEPS):
        raise StoreError(
            f"the store was made by a newer smelt: it is at version {version}, this one knows {len(STEPS)}; "
            "upgrade, or name another with --store"
        )
    if version == 0:
        connection.execute(text(_LEDGER))
    for number, statements in enumerate(STEPS[version:], version + 1):
        for statement in statements:
            connection.execute(text(statement))
        connection.execute(insert(migrations_done).values(version=number, applied_ns=time.time_ns()))
