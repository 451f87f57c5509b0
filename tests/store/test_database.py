"""Transactions: whole or not at all, for one process or several; failures have a word and carry no content."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from smelt.core.errors import StoreError
from smelt.store.completions import Completions
from smelt.store.database import Database
from smelt.store.location import Location, locate
from smelt.store.models import FineTune, FineTunes
from smelt.store.pages import Cursor
from tests.store.conftest import completion

WRITER = """
import sys
from smelt.store.completions import Completions
from smelt.store.database import Database
from smelt.store.location import locate
from tests.store.conftest import completion
completions = Completions(Database.open(locate(sys.argv[1])))
for i in range(int(sys.argv[2])):
    row = completion(i, metadata={"k": "v"})
    completions.add(row)
    print(row.id, flush=True)
"""


def _writer(path: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(count)], stdout=subprocess.PIPE, text=True)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "a/b/store.db"
    with closing(Database.open(Location(path=path))) as database:
        Completions(database).add(completion(1))
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_a_killed_process_committed_is_there(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    told = []
    with _writer(path, 100_000) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line.strip())
            if len(told) == 50:
                process.kill()
                break
        told += [line.strip() for line in process.stdout if line.endswith("\n")]
    with closing(Database.open(Location(path=path))) as database, database.reading() as connection:
        completions = Completions(database)
        for completion_id in told:
            found = completions.get("", completion_id)
            assert found and found.metadata == {"k": "v"}
        counts = [
            connection.scalar(text(f"SELECT count(*) FROM {name}")) for name in ("chat_completions", "chat_messages")
        ]
        assert counts[0] == counts[1] and counts[0] in (len(told), len(told) + 1)
        assert connection.scalar(text("PRAGMA integrity_check")) == "ok"


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    writers = [_writer(path, 40) for _ in range(2)]
    told = [line for writer in writers for line in writer.communicate(timeout=60)[0].split()]
    assert len(told) == 80 and all(writer.returncode == 0 for writer in writers)
    with closing(Database.open(Location(path=path))) as database:
        assert all(Completions(database).get("", completion_id) for completion_id in told)


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    completions = Completions(database)
    completions.add(completion(1, id="first"))
    start = time.monotonic()
    with database.writing() as connection:
        connection.execute(text("DELETE FROM chat_completions"))
        other: list[object] = []
        thread = threading.Thread(target=lambda: other.append(completions.get("", "first")))
        thread.start()
        thread.join(4)
        assert other[0] is not None, "it sees what was committed"
    assert completions.get("", "first") is None
    assert time.monotonic() - start < 4


def test_an_exception_undoes_the_transaction(database: Database) -> None:
    Completions(database).add(completion(1, id="kept"))
    with pytest.raises(ZeroDivisionError), database.writing() as connection:
        connection.execute(text("DELETE FROM chat_completions"))
        raise ZeroDivisionError
    assert Completions(database).get("", "kept")


def test_errors_hold_no_content(database: Database) -> None:
    Completions(database).add(completion(1, id="same", request={"secret": "xyzzy"}))
    with pytest.raises(StoreError) as failed:
        Completions(database).add(completion(1, id="same", request={"secret": "xyzzy"}))
    assert failed.value.reason == "failed"
    chain: BaseException | None = failed.value
    while chain is not None:
        assert "xyzzy" not in str(chain)
        chain = chain.__cause__


def test_a_full_store(tmp_path: Path) -> None:
    """What does not fit is refused whole; deleting makes room."""
    with closing(Database.open(Location(path=tmp_path / "store.db"), max_bytes=2**18)) as database:
        completions = Completions(database)
        big = {"text": "x" * 40_000}
        with pytest.raises(StoreError, match="full") as failed:
            for i in range(10):
                completions.add(completion(i, id=f"c{i}", response=big))
        assert failed.value.reason == "full"
        page = completions.page("", Cursor())
        assert page and 2 <= len(page.items) < 8
        assert completions.delete("", "c0")
        completions.add(completion(20, id="after", response=big))


def test_a_store_that_may_only_be_read(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(Database.open(Location(path=path))) as database:
        Completions(database).add(completion(1, id="there"))
    location = locate(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert location
    with closing(Database.open(location)) as database:
        assert Completions(database).get("", "there")
        with pytest.raises(StoreError) as failed:
            Completions(database).add(completion(2))
        assert failed.value.reason == "readonly"


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database " * 100)
    with pytest.raises(StoreError, match="not a database"):
        Database.open(Location(path=tmp_path / "text"))
    with pytest.raises(StoreError, match="cannot be made or written"):
        Database.open(Location(path=tmp_path / "text/store.db"))
    with pytest.raises(StoreError):
        Database.open(Location(path=tmp_path))


def test_a_deleted_text_is_gone_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(Database.open(Location(path=path))) as database:
        Completions(database).add(completion(1, id="c", response={"text": "xyzzy" * 2000}))
        Completions(database).delete("", "c")
    assert b"xyzzy" not in path.read_bytes()


def test_fine_tunes(database: Database) -> None:
    models = FineTunes(database)
    models.add(FineTune(id="ft:x", tenant="a", created_ns=1, base_model="m"))
    with pytest.raises(StoreError):
        models.add(FineTune(id="ft:x", tenant="b", created_ns=1, base_model="m"))
    assert not models.delete("b", "ft:x")
    assert models.delete("a", "ft:x") and not models.delete("a", "ft:x")


def test_importing_the_room_loads_no_sqlalchemy() -> None:
    """Serving asks where the store is, and makes ids; only using it costs the import."""
    code = (
        "import sys, smelt.server.serve, smelt.store.location, smelt.store.ids; sys.exit('sqlalchemy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
