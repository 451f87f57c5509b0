"""Stored completions against a twin: a plain list, sorted and filtered the obvious way."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.store import completions as module
from smelt.store.completions import Completions, StoredCompletion
from smelt.store.database import Database
from smelt.store.ids import created_ns_of, timed_id
from smelt.store.location import Location
from smelt.store.pages import Cursor
from tests.store.conftest import completion

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
ROWS = st.lists(
    st.builds(
        completion,
        st.integers(0, 3),  # the same instant often: ids then decide
        tenant=st.sampled_from(["", "a"]),
        model=st.sampled_from(["m", "n"]),
        metadata=st.dictionaries(st.sampled_from(["k", "j", 'q"\\']), st.sampled_from(["v", "", "w"]), max_size=2),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One store for all examples of a property: making a file for each would be most of the time."""
    with closing(Database.open(Location(path=tmp_path_factory.mktemp("shared") / "store.db"))) as database:
        yield database


def _fill(database: Database, rows: list[StoredCompletion]) -> Completions:
    completions = Completions(database)
    with database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM chat_completions")
    for row in rows:
        completions.add(row)
    return completions


def _all_pages(completions: Completions, tenant: str, cursor: Cursor, delete: bool, **which: Any) -> list[str]:
    """Every id, page by page; deleting each page before asking for the next, if told to."""
    found: list[str] = []
    while True:
        page = completions.page(tenant, cursor, **which)
        assert page is not None and len(page.items) <= cursor.limit
        found += [item.id for item in page.items]
        if not page.has_more:
            return found
        assert len(page.items) == cursor.limit
        for item in page.items if delete else ():
            assert completions.delete(tenant, item.id)
        cursor = dataclasses.replace(cursor, after=found[-1])


@settings(max_examples=40, deadline=None)
@given(
    rows=ROWS,
    tenant=st.sampled_from(["", "a", "b"]),
    limit=st.integers(1, 5),
    order=st.sampled_from(["asc", "desc"]),
    model=st.sampled_from([None, "m", "n", "x"]),
    metadata=st.dictionaries(st.sampled_from(["k", "j", 'q"\\']), st.sampled_from(["v", ""]), max_size=2),
    delete=st.booleans(),
)
def test_pages_are_the_sorted_list_in_pieces(
    shared: Database,
    rows: list[StoredCompletion],
    tenant: str,
    limit: int,
    order: Any,
    model: str | None,
    metadata: dict[str, str],
    delete: bool,
) -> None:
    completions = _fill(shared, rows)
    wanted = sorted(
        (
            row
            for row in rows
            if row.tenant == tenant and model in (None, row.model) and metadata.items() <= row.metadata.items()
        ),
        key=lambda row: (row.created_ns, row.id),
        reverse=order == "desc",
    )
    cursor = Cursor(limit=limit, order=order)
    found = _all_pages(completions, tenant, cursor, delete, model=model, metadata=metadata)
    assert found == [row.id for row in wanted]


@settings(max_examples=30, deadline=None)
@given(
    metadata=st.dictionaries(TEXT, TEXT, max_size=3),
    replaced=st.dictionaries(TEXT, TEXT, max_size=3),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_what_goes_in_comes_out(
    shared: Database, metadata: dict[str, str], replaced: dict[str, str], text: str
) -> None:
    row = completion(5, metadata=metadata, response={text: [text, None, 1.5]}, messages=({"content": text},))
    completions = _fill(shared, [row])
    assert completions.get("", row.id) == dataclasses.replace(row, messages=())
    messages = completions.messages("", row.id, after=None, limit=9)
    assert messages and messages.items == ((0, {"content": text}),)
    changed = completions.set_metadata("", row.id, replaced)
    assert changed and changed.metadata == replaced and changed == completions.get("", row.id)


@given(messages=st.integers(0, 7), limit=st.integers(1, 4), descending=st.booleans())
@settings(max_examples=20, deadline=None)
def test_messages_in_pieces(shared: Database, messages: int, limit: int, descending: bool) -> None:
    row = completion(5, messages=tuple({"n": i} for i in range(messages)))
    completions = _fill(shared, [row])
    found: list[int] = []
    after = None
    while True:
        page = completions.messages("", row.id, after=after, limit=limit, descending=descending)
        assert page is not None
        assert all(body == {"n": position} for position, body in page.items)
        found += [position for position, _ in page.items]
        if not page.has_more:
            break
        after = found[-1]
    assert found == sorted(range(messages), reverse=descending)


def test_another_tenant_finds_nothing(database: Database) -> None:
    completions = Completions(database)
    completions.add(completion(1, id="c", tenant="a"))
    assert completions.get("b", "c") is None
    assert completions.set_metadata("b", "c", {}) is None
    assert completions.messages("b", "c", after=None, limit=9) is None
    assert not completions.delete("b", "c")
    assert completions.page("b", Cursor(after="c")) is None
    assert completions.get("a", "c")


def test_deleting_takes_all_that_belongs_to_it(database: Database) -> None:
    completions = Completions(database)
    completions.add(completion(1, id="c", metadata={"k": "v"}))
    completions.delete("", "c")
    completions.add(completion(2, id="c", messages=()))
    again, messages = completions.get("", "c"), completions.messages("", "c", after=None, limit=9)
    assert again and again.metadata == {} and messages and messages.items == ()


def test_expired_ones_go_when_the_next_comes(database: Database) -> None:
    completions = Completions(database)
    for i in range(5):
        completions.add(completion(i, tenant=str(i % 2)))
    completions.add(completion(9), expired_before_ns=3)
    left = [page.items for tenant in "01" if (page := completions.page(tenant, Cursor()))]
    assert [[row.created_ns for row in rows] for rows in left] == [[4], [3]]


def test_a_page_of_long_answers_ends_early(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is bounded in size, and one answer beyond the bound still comes, alone."""
    monkeypatch.setattr(module, "MAX_PAGE_CHARS", 10_000)
    completions = Completions(database)
    lengths = [4000, 4000, 4000, 50_000, 10]
    for i, length in enumerate(lengths):
        completions.add(completion(i, id=f"c{i}", response={"text": "x" * length}))
    first = completions.page("", Cursor())
    assert first and len(first.items) == 2 and first.has_more
    assert _all_ids(completions) == [f"c{i}" for i in range(5)]


def _all_ids(completions: Completions) -> list[str]:
    found: list[str] = []
    cursor = Cursor()
    while page := completions.page("", cursor):
        found += [item.id for item in page.items]
        if not page.has_more:
            break
        cursor = Cursor(after=found[-1])
    return found


def test_ids_tell_their_time() -> None:
    ids = [timed_id("chatcmpl", ns) for ns in (1, 17, 2**60)]
    assert sorted(ids) == ids and [created_ns_of(i) for i in ids] == [1, 17, 2**60]
    for other in ("", "completion_id", "chatcmpl-" + "g" * 32, ids[0] + "0", ids[0][:-1], ids[0] + "\n"):
        assert created_ns_of(other) is None
