"""The one door to the store: opens it, brings it to the present version, gives out short transactions."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from smelt.core.errors import StoreError
from smelt.store.location import Location
from smelt.store.migrations import STEPS, migrate, version_of

BUSY_S = 5.0  # how long a transaction waits for another's lock
NUM_CONNECTIONS = 4
_WRITES = "smelt_writes"  # the option that marks a writing transaction
_PRAGMAS = (
    "journal_mode = WAL",  # readers and the writer do not wait for each other; first, as it may be refused
    "synchronous = FULL",  # committed is on the disk, past a loss of power as well
    "foreign_keys = ON",
    "secure_delete = ON",  # a deleted conversation leaves no text in free pages
    "journal_size_limit = 16777216",
)


class Database:
    """An open store. Threads share it; each transaction is one thread's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = threading.Lock()

    @classmethod
    def open(cls, location: Location, *, max_bytes: int = 0) -> Database:
        """The store at `location`, made (readable by its owner alone) and migrated where that is needed.

        max_bytes: the size a SQLite file may grow to, 0 for no limit; PostgreSQL has its own ways to limit.
        Raises StoreError.
        """
        if location.path is not None:
            _make_private(location)
        try:
            engine = _engine(location, max_bytes)
        except ModuleNotFoundError as error:
            raise StoreError(
                f"{location} needs a driver: pip install 'psycopg[binary]' (no module {error.name})"
            ) from None
        except SQLAlchemyError as error:
            raise _store_error(error) from None
        database = cls(engine)
        try:
            database._migrate()
        except BaseException:
            engine.dispose()
            raise
        return database

    def _migrate(self) -> None:
        with self.reading() as connection:
            if version_of(connection) == len(STEPS):
                return
        with self.writing() as connection:  # which finds out again: another program may have been faster
            migrate(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database. Raises StoreError."""
        with _translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write; committed at the end, undone by an exception. Raises StoreError.

        One at a time in this process: threads queue here, fairly, and not in SQLite's polling.
        """
        if not self._writer.acquire(timeout=BUSY_S):
            raise StoreError("another write took too long", reason="locked")
        try:
            with _translated(), self._engine.connect() as plain:
                connection = plain.execution_options(**{_WRITES: True})
                with connection.begin():
                    yield connection
        finally:
            self._writer.release()

    def close(self) -> None:
        """Close every connection; the last one to close a SQLite file empties its log into it."""
        self._engine.dispose()


def _make_private(location: Location) -> None:
    assert location.path is not None
    try:
        location.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(location.path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(f"{location} cannot be made or written ({error.strerror})", reason="readonly") from None


def _engine(location: Location, max_bytes: int) -> Engine:
    url: URL | str = location.url or URL.create("sqlite", database=str(location.path))
    is_sqlite = str(url).startswith("sqlite")
    arguments: dict[str, Any] = {"timeout": BUSY_S} if is_sqlite else {"connect_timeout": round(BUSY_S)}
    engine = create_engine(
        url,
        connect_args=arguments,
        hide_parameters=True,  # they are conversations, and errors are logged
        pool_size=NUM_CONNECTIONS,
        max_overflow=0,
        pool_timeout=BUSY_S,
        pool_pre_ping=not is_sqlite,  # a server of its own may have been restarted
    )
    if is_sqlite:
        event.listen(engine, "connect", lambda connection, _: _configure(connection, max_bytes))
        event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, max_bytes: int) -> None:
    connection.isolation_level = None  # transactions begin below, and hold the statements that make tables too
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    if max_bytes:
        (page_bytes,) = cursor.execute("PRAGMA page_size").fetchone()
        cursor.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_bytes)}")
    cursor.close()


def _begin(connection: Connection) -> None:
    """A writer takes its lock at once: one that read first could find its snapshot out of date, and fail."""
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise _store_error(error) from error


def _store_error(error: SQLAlchemyError) -> StoreError:
    """The driver's words, which hold no values, and what kind of trouble it is."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = str(cause).splitlines()
    code = (getattr(cause, "sqlite_errorcode", None) or 0) & 0xFF  # the low byte of SQLite's extended codes
    reasons = {sqlite3.SQLITE_FULL: "full", sqlite3.SQLITE_BUSY: "locked", sqlite3.SQLITE_READONLY: "readonly"}
    return StoreError(lines[0] if lines else type(error).__name__, reason=reasons.get(code, "failed"))
