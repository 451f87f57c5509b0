"""Where the store is: a SQLite file, a database by URL, or nowhere. Standard library only: asking costs no import."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

NOWHERE = "none"
_SQLITE, _POSTGRES = "sqlite:///", ("postgresql://", "postgresql+psycopg://")


@dataclass(frozen=True, kw_only=True)
class Location:
    """`url` as SQLAlchemy takes it, or "" for the file at `path`. path: None when the URL names no plain file."""

    path: Path | None = None
    url: str = ""

    @property
    def exists(self) -> bool:
        """False where there is certainly nothing to read: the file was not made yet."""
        return self.path is None or self.path.exists()

    def __str__(self) -> str:
        """Fit to be printed: without the user and the password."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}" if self.url else str(self.path)

    __repr__ = __str__


def default_path() -> Path:
    """`store.db` in the user's data directory: XDG_DATA_HOME/smelt where that is set, else the system's custom."""
    if (base := os.environ.get("XDG_DATA_HOME", "")) and Path(base).is_absolute():  # XDG: relative ones are ignored
        return Path(base) / "smelt/store.db"
    home = Path.home()
    return home / ("Library/Application Support" if sys.platform == "darwin" else ".local/share") / "smelt/store.db"


def locate(text: str) -> Location | None:
    """What a person wrote: a path, `sqlite:///…`, `postgresql://…`, or "none" (None). Raises ValueError."""
    if text == NOWHERE:
        return None
    if "://" not in text:
        if not text or text.startswith(":"):
            raise ValueError("the store is a path, a database URL, or none")
        return Location(path=Path(text).expanduser().absolute())
    if text.startswith(_SQLITE) and (name := text.removeprefix(_SQLITE)) and not name.startswith((":", "?")):
        return (
            Location(url=text) if name.startswith("file:") else Location(path=Path(name.partition("?")[0]).absolute())
        )
    for scheme in _POSTGRES:
        if text.startswith(scheme):  # the driver by name: SQLAlchemy's own choice differs between its releases
            return Location(url=_POSTGRES[1] + text.removeprefix(scheme))
    raise ValueError(f"no store at {text.partition('://')[0]}://…: it must be sqlite:///PATH or postgresql://…")
