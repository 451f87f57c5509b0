"""What a corpus depends on: settings, sources, this room's code and the libraries that decide its bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from smelt.core.errors import InvalidRequestError
from smelt.data.corpus.pieces import PIECE_CHARS
from smelt.data.corpus.text_sources import TextSource

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a corpus depends on, and `processes`, on which it does not.

    `wanted`: words of `text_sources.chosen`. `limit_chars`: characters read from each source, None for all.
    `valid_share` of the documents is held out, more where a language would have less than `valid_min_bytes`.
    """

    data: Path | None = None
    wanted: tuple[str, ...] = ()
    limit_chars: int | None = None
    valid_share: float = 0.005
    valid_min_bytes: int = 400_000
    piece_chars: int = PIECE_CHARS
    processes: int = 1


def plan_of(settings: Settings, sources: list[TextSource]) -> dict[str, Any]:
    """All that decides the corpus's bytes, with the versions of the libraries that do."""
    from importlib.metadata import version

    return {
        "format": FORMAT,
        "limit_chars": settings.limit_chars,
        "valid_share": settings.valid_share,
        "valid_min_bytes": settings.valid_min_bytes,
        "piece_chars": settings.piece_chars,
        "decontaminated": settings.data is not None,
        "rules": rules_sha256(),
        "libraries": {name: version(name) for name in ("opencc", "zstandard")},
        "sources": {source.name: source.sha256(settings.data) for source in sources},
    }


def rules_sha256() -> str:
    """Of this room's code, word lists and weights: pieces made by other rules are not gone on with."""
    room = files("smelt.data.corpus")
    parts = [*room.iterdir(), *room.joinpath("words").iterdir()]
    texts = {part.name: part.read_bytes() for part in parts if part.name.endswith((".py", ".txt", ".npz"))}
    texts.pop("report.py")  # says how a corpus is shown
    return hashlib.sha256(b"".join(name.encode() + text for name, text in sorted(texts.items()))).hexdigest()


def check_same(there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InvalidRequestError where a folder's plan is another than the wanted one, saying what differs."""
    differ = [name for name in wanted if there.get(name) != wanted[name]]
    if differ:
        raise InvalidRequestError(
            f"this folder holds a corpus made with another {', '.join(differ)}: choose another folder, or delete it"
        )
