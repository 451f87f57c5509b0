"""Paths, URLs and nothing; a URL's password is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from smelt.store.location import default_path, locate


def test_paths() -> None:
    assert locate("none") is None
    found = locate("~/x/store.db")
    assert found and found.path == Path.home() / "x/store.db" and not found.url
    relative = locate("sqlite:///x.db")
    assert relative and relative.path == Path("x.db").absolute()
    absolute = locate("sqlite:////x/y.db")
    assert absolute and absolute.path == Path("/x/y.db") and not absolute.exists


def test_urls() -> None:
    found = locate("postgresql://ann:secret@db.example:5432/smelt")
    assert found and found.url == "postgresql+psycopg://ann:secret@db.example:5432/smelt"
    assert str(found) == repr(found) == "postgresql+psycopg://db.example:5432/smelt"
    assert found.exists


@pytest.mark.parametrize("text", ["", ":memory:", "sqlite://", "sqlite:///:memory:", "mysql://x/y", "http://x/y"])
def test_what_is_no_store(text: str) -> None:
    with pytest.raises(ValueError, match="store") as refused:
        locate(text)
    assert "x/y" not in str(refused.value)


@pytest.mark.parametrize(
    ("platform", "xdg", "end"),
    [
        ("linux", "", ".local/share/smelt/store.db"),
        ("linux", "relative", ".local/share/smelt/store.db"),
        ("linux", "/data", "/data/smelt/store.db"),
        ("darwin", "", "Library/Application Support/smelt/store.db"),
        ("darwin", "/data", "/data/smelt/store.db"),
    ],
)
def test_the_default(platform: str, xdg: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("XDG_DATA_HOME", xdg)
    assert str(default_path()).endswith(end) and default_path().is_absolute()
