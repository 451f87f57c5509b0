"""Stored chat completions: one row each, its messages and its metadata in rows of their own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, exists, insert, select, tuple_

from smelt.store.database import Database
from smelt.store.ids import created_ns_of
from smelt.store.pages import MAX_PAGE_CHARS, Cursor, Page
from smelt.store.tables import chat_completions, chat_messages, chat_metadata

MAX_EXPIRED_AT_ONCE = 100  # rows taken away by one insertion, so that none takes long
_C = chat_completions.c


@dataclass(frozen=True, kw_only=True)
class StoredCompletion:
    """An answer and what led to it. request: the body without messages and metadata; response: the completion object.

    messages: the request's, as sent; empty when read back, as `messages` lists them.
    """

    id: str
    tenant: str
    created_ns: int
    model: str
    request_id: str
    request: Mapping[str, Any]
    response: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()


class Completions:
    """The chat completions of a database. Each method sees one tenant's rows only; all raise StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, completion: StoredCompletion, *, expired_before_ns: int = 0) -> None:
        """Insert `completion`, whole or not at all, and delete a few rows, of any tenant, older than the time given."""
        messages = [
            {"completion_id": completion.id, "position": i, "body": _dumps(message)}
            for i, message in enumerate(completion.messages)
        ]
        row = {
            "id": completion.id,
            "tenant": completion.tenant,
            "created_ns": completion.created_ns,
            "model": completion.model,
            "request_id": completion.request_id,
            "request": _dumps(completion.request),
            "response": _dumps(completion.response),
        }
        with self._database.writing() as connection:
            _expire(connection, expired_before_ns)
            connection.execute(insert(chat_completions).values(row))
            if messages:
                connection.execute(insert(chat_messages), messages)
            _add_metadata(connection, completion.id, completion.metadata)

    def get(self, tenant: str, completion_id: str) -> StoredCompletion | None:
        """One of them; None where there is none of this id."""
        with self._database.reading() as connection:
            row = connection.execute(select(chat_completions).where(_is(tenant, completion_id))).first()
            return _loaded(connection, [row])[0] if row else None

    def page(
        self, tenant: str, cursor: Cursor, *, model: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> Page[StoredCompletion] | None:
        """Those of `model` that have all pairs of `metadata`, in order of their time; None: no place is `after`."""
        wanted = select(chat_completions).where(_C.tenant == tenant)
        if model is not None:
            wanted = wanted.where(_C.model == model)
        for key, value in (metadata or {}).items():
            pair = (chat_metadata.c.completion_id == _C.id, chat_metadata.c.key == key, chat_metadata.c.value == value)
            wanted = wanted.where(exists().where(*pair))
        with self._database.reading() as connection:
            if cursor.after is not None:
                created_ns = _created_ns(connection, tenant, cursor.after)
                if created_ns is None:
                    return None
                seen, place = tuple_(_C.created_ns, _C.id), (created_ns, cursor.after)
                wanted = wanted.where(seen < place if cursor.order == "desc" else seen > place)
            columns = (_C.created_ns, _C.id)
            wanted = wanted.order_by(*(c.desc() if cursor.order == "desc" else c.asc() for c in columns))
            rows, has_more = _fitting(connection, wanted, cursor.limit)
            return Page(tuple(_loaded(connection, rows)), has_more)

    def set_metadata(self, tenant: str, completion_id: str, metadata: Mapping[str, str]) -> StoredCompletion | None:
        """Replace all of its metadata; the completion as it then is, or None."""
        with self._database.writing() as connection:
            row = connection.execute(select(chat_completions).where(_is(tenant, completion_id))).first()
            if row is None:
                return None
            connection.execute(delete(chat_metadata).where(chat_metadata.c.completion_id == completion_id))
            _add_metadata(connection, completion_id, metadata)
            return _loaded(connection, [row])[0]

    def delete(self, tenant: str, completion_id: str) -> bool:
        """Delete it with all that belongs to it; False where there was none."""
        with self._database.writing() as connection:
            return connection.execute(delete(chat_completions).where(_is(tenant, completion_id))).rowcount > 0

    def messages(
        self, tenant: str, completion_id: str, *, after: int | None, limit: int, descending: bool = False
    ) -> Page[tuple[int, dict[str, Any]]] | None:
        """Position and body of the request's messages behind position `after`; None: no such completion."""
        position = chat_messages.c.position
        wanted = select(position, chat_messages.c.body).where(chat_messages.c.completion_id == completion_id)
        if after is not None:
            wanted = wanted.where(position < after if descending else position > after)
        wanted = wanted.order_by(position.desc() if descending else position.asc())
        with self._database.reading() as connection:
            if not connection.scalar(select(exists().where(_is(tenant, completion_id)))):
                return None
            rows, has_more = _fitting(connection, wanted, limit)
            return Page(tuple((row.position, json.loads(row.body)) for row in rows), has_more)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is(tenant: str, completion_id: str) -> Any:
    return (_C.tenant == tenant) & (_C.id == completion_id)


def _created_ns(connection: Connection, tenant: str, completion_id: str) -> int | None:
    """The time of a row or, when it is gone, the one its id tells: a list can be gone through and emptied at once."""
    found = connection.scalar(select(_C.created_ns).where(_is(tenant, completion_id)))
    return created_ns_of(completion_id) if found is None else found


def _add_metadata(connection: Connection, completion_id: str, metadata: Mapping[str, str]) -> None:
    if metadata:
        pairs = [{"completion_id": completion_id, "key": key, "value": value} for key, value in metadata.items()]
        connection.execute(insert(chat_metadata), pairs)


def _expire(connection: Connection, before_ns: int) -> None:
    if before_ns > 0:
        oldest = select(_C.id).where(_C.created_ns < before_ns).order_by(_C.created_ns).limit(MAX_EXPIRED_AT_ONCE)
        connection.execute(delete(chat_completions).where(_C.id.in_(oldest.scalar_subquery())))


def _fitting(connection: Connection, wanted: Select[Any], limit: int) -> tuple[list[Row[Any]], bool]:
    """Up to `limit` rows, fewer where their text is more than a page may hold; whether others follow."""
    rows: list[Row[Any]] = []
    num_chars = 0
    with connection.execute(wanted.limit(limit + 1)) as result:
        for row in result:
            num_chars += sum(len(value) for value in row if isinstance(value, str))
            if len(rows) == limit or (rows and num_chars > MAX_PAGE_CHARS):
                return rows, True
            rows.append(row)
    return rows, False


def _loaded(connection: Connection, rows: Iterable[Row[Any]]) -> list[StoredCompletion]:
    """The rows with their metadata, keys in order."""
    rows = list(rows)
    pairs: dict[str, dict[str, str]] = {row.id: {} for row in rows}
    wanted = select(chat_metadata).where(chat_metadata.c.completion_id.in_(pairs)).order_by(chat_metadata.c.key)
    for pair in connection.execute(wanted):
        pairs[pair.completion_id][pair.key] = pair.value
    return [
        StoredCompletion(
            id=row.id,
            tenant=row.tenant,
            created_ns=row.created_ns,
            model=row.model,
            request_id=row.request_id,
            request=json.loads(row.request),
            response=json.loads(row.response),
            metadata=pairs[row.id],
        )
        for row in rows
    ]
