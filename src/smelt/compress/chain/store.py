"""What the chain keeps on disk: artifacts by content, and which stage made which.

<folder>/stages/<name>-<id>/scratch/     a stage under way; survives a kill, goes when the stage is done
<folder>/stages/<name>-<id>/out/         what it made: a model folder
<folder>/stages/<name>-<id>/stage.json   written last: its presence says that the stage is done
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smelt.compress.stage import Stage
from smelt.core.errors import CheckpointError
from smelt.train.lineage import RECORDS, digest, file_sha256

FORMAT = 1
"""Part of every stage's identity: raised when what stages make of the same settings changes."""

_SUFFIXES = ("", ".json", ".safetensors", ".txt", ".jinja", ".model")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model folder and the sha256 of each file that decides what it computes."""

    folder: Path
    files: Mapping[str, str]

    @property
    def hash(self) -> str:
        """sha256 of names and whole contents: two folders with the same hash hold the same bytes."""
        return digest(dict(self.files))

    @property
    def num_bytes(self) -> int:
        """Of all these files."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    @property
    def weight_bytes(self) -> int:
        """Of the weights alone."""
        return sum((self.folder / name).stat().st_size for name in self.files if name.endswith(".safetensors"))


def artifact_of(folder: Path) -> Artifact:
    """The folder's weights, configuration and tokenizer, read whole. Cards, lineages and reports take no part."""
    names = [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.suffix in _SUFFIXES and path.name not in RECORDS
    ]
    return Artifact(folder=folder, files={name: file_sha256(folder / name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished stage, as stage.json tells it. wall_s: of all its pieces; facts: the stage's own."""

    id: str
    name: str
    settings: dict[str, Any]
    input: str
    output: str
    files: dict[str, str]
    facts: dict[str, Any]
    wall_s: float
    made_with: dict[str, Any]


def settings_of(stage: Stage, *, decisive: bool = False) -> dict[str, Any]:
    """A stage's fields as JSON values; with `decisive` only those that decide its outcome."""
    fields = dataclasses.fields(stage)  # type: ignore[arg-type]  # a dataclass, as the protocol says
    shown = {f.name: getattr(stage, f.name) for f in fields if not (decisive and f.metadata.get("how"))}
    found: dict[str, Any] = json.loads(json.dumps(shown, default=_plain))
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"is": type(value).__name__} | {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a stage's settings hold a {type(value).__name__}; sought plain values, dataclasses, paths")


def stage_id(stage: Stage, source: str, teacher: str, material: str) -> str:
    """sha256 of all that decides what a stage makes: itself, input, teacher and material by their hashes."""
    kind = type(stage)
    return digest(
        {
            "format": FORMAT,
            "stage": stage.name,
            "kind": f"{kind.__module__}.{kind.__qualname__}",
            "settings": settings_of(stage, decisive=True),
            "input": source,
            "teacher": teacher,
            "material": material,
        }
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """One stage's folder."""

    folder: Path

    @property
    def out(self) -> Path:
        """Where its artifact lies."""
        return self.folder / "out"

    @property
    def scratch(self) -> Path:
        """Where it works."""
        return self.folder / "scratch"

    @property
    def measured(self) -> Path:
        """What was measured of its artifact."""
        return self.folder / "measured.json"

    def done(self) -> Done | None:
        """The finished stage, or None. Raises CheckpointError where its artifact was changed since."""
        path = self.folder / "stage.json"
        if not path.is_file():
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        found = Done(**document)
        changed = changed_files(self.out, found.files)
        if changed:
            raise CheckpointError(
                f"{self.folder.name}: {changed[0]}; the finished stage's files were changed. Remove that folder, and "
                "the stage is computed again"
            )
        return found

    def begin(self) -> None:
        """Ready to work: a result that a kill left before it was noted is made again, out of what the scratch holds."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.out, ignore_errors=True)

    def finish(self, done: Done) -> None:
        """Note it, whole or not at all; then the scratch is needed no more."""
        write_json(self.folder / "stage.json", dataclasses.asdict(done))
        shutil.rmtree(self.scratch, ignore_errors=True)
        (self.folder / "clock").unlink(missing_ok=True)

    def clock(self) -> Clock:
        """Wall time over all pieces."""
        return Clock(self.folder / "clock")


class Clock:
    """Seconds spent on a stage, kept in a file so that a kill loses few of them."""

    def __init__(self, path: Path) -> None:
        self._path, self._began, self._kept = path, time.monotonic(), time.monotonic()
        try:
            self._before = float(path.read_text())
        except (OSError, ValueError):
            self._before = 0.0

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._began

    def keep(self, every_s: float = 5.0) -> None:
        """Write it down if that was long ago."""
        if time.monotonic() - self._kept >= every_s:
            self._path.write_text(f"{self.seconds:.3f}")
            self._kept = time.monotonic()


def place_of(folder: Path, stage: Stage, identity: str) -> Place:
    """Where the chain in `folder` keeps this stage."""
    return Place(folder=folder / "stages" / f"{stage.name}-{identity[:16]}")


def changed_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """What is wrong with `files` (name -> sha256), in words; nothing where all are as they were."""
    found = []
    for name, sought in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif (hashed := file_sha256(path)) != sought:
            found.append(f"{name} was changed: sought sha256 {sought[:12]}…, found {hashed[:12]}…")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write a document so that after a crash it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
