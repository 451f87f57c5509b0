"""What a public set is: its file, its licence, its parts, and how its records become examples."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smelt.core.errors import SmeltError
from smelt.core.messages import Message, Tool
from smelt.data.example import Example, call_message, compact_json

Record = dict[str, Any]
Part = Literal["train", "test", "other"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of JSON lines (zstd) and how to learn from it.

    `part` says whether record number i is for training or for testing; `test_file` holds the test where it is apart.
    A set without a test part of ours (`has_test` False) is only learned from.
    """

    name: str
    file: str
    origin: str
    licence: str
    convert: Callable[[list[Record], random.Random], Iterator[Example]]
    part: Callable[[int, Record], Part]
    test_file: str | None = None
    has_test: bool = True

    def available(self, folder: Path) -> bool:
        """Whether the file is there."""
        return (folder / self.file).is_file()

    def examples(self, folder: Path, seed: int, part: Part = "train") -> list[Example]:
        """All examples of a part, in an order decided by the file and `seed`. Never train on "test"."""
        file = self.test_file if part == "test" and self.test_file else self.file
        records = [
            record
            for i, record in enumerate(read_jsonl(folder / file))
            if self.part(i, record) == part or file == self.test_file
        ]
        return list(self.convert(records, random.Random(f"{self.name}/{seed}")))

    def sha256(self, folder: Path) -> str:
        """Of the file as it lies there."""
        return hashlib.sha256((folder / self.file).read_bytes()).hexdigest()


def read_jsonl(path: Path) -> list[Record]:
    """Records of a zstd-compressed file of JSON lines."""
    import zstandard

    if not path.is_file():
        raise SmeltError(f"no data file {path.name}")
    with path.open("rb") as raw:
        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8")
        return [json.loads(line) for line in text if line.strip()]


def words_of(identifier: str) -> str:
    """`GetWeather`, `book_flight`, `cityOfEvent` as lower-case words."""
    spaced = "".join(" " + char.lower() if char.isupper() else char for char in identifier)
    return " ".join(spaced.replace("_", " ").replace("-", " ").split())


def call_of(text: str, tools: list[Tool], name: str, arguments: Record, skill: str, language: str = "en") -> Example:
    """One request and its call."""
    messages = (Message.of("user", text), call_message(name, compact_json(arguments)))
    return Example(skill=skill, language=language, messages=messages, tools=tuple(tools))


def shuffled(rng: random.Random, items: list[Any]) -> list[Any]:
    """The items in another order."""
    found = list(items)
    rng.shuffle(found)
    return found


def object_of(rng: random.Random, needed: list[str], more: list[str]) -> dict[str, Any]:
    """An object schema of string properties; `more` are optional ones the text says nothing of."""
    extra = rng.sample(more, k=min(len(more), rng.choice([0, 0, 1, 2])))
    names = shuffled(rng, [*needed, *extra])
    return {"type": "object", "properties": {n: {"type": "string"} for n in names}, "required": list(needed)}


def ordered(schema: Record, values: Record) -> Record:
    """The values in the schema's order."""
    return {name: values[name] for name in schema["properties"] if name in values}
