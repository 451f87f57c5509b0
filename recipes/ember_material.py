"""What ember learns from, as files that travel: the corpus's train part, the public dialogues, sentences, tokenizer.

On the other side there are no public sets to read, only these files. Generated conversations need none: the code that
makes them travels with the repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.ember_data import Material
from smelt.core.errors import DataError
from smelt.core.messages import Message, ResponseFormat, TextPart, Tool, ToolCall
from smelt.data.corpus.shards import manifest_of
from smelt.data.example import Example

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def files_of(material: Material, tokenizer: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file, always in the same order; shards of the corpus without their packing.

    Raises DataError where the folder `tokenizer` holds none.
    """
    for name in TOKENIZER_FILES:
        if not (tokenizer / name).is_file():
            raise DataError(f"{tokenizer.name}: sought a tokenizer's folder, found no {name}")
        yield f"tokenizer/{name}", (tokenizer / name).read_bytes()
    yield "pools.json", _json(material.pools).encode()
    for source, examples in sorted(material.dialogues.items()):
        yield f"dialogues/{source}.jsonl", "".join(_json(as_json(one)) + "\n" for one in examples).encode()
    if material.corpus is not None:
        yield from _corpus_files(material.corpus)


def _corpus_files(corpus: Path) -> Iterator[tuple[str, bytes]]:
    import zstandard

    yield "corpus/manifest.json", (corpus / "manifest.json").read_bytes()
    for shard in manifest_of(corpus)["shards"]:
        if shard["split"] == "train":  # what is held out stays where scores are taken
            with (corpus / shard["file"]).open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as text:
                yield f"corpus/{shard['file']}".removesuffix(".zst"), text.read()


def stored(name: str, content: bytes) -> tuple[str, bytes]:
    """The file as the restored folder holds it: a corpus's shards are packed there, lightly."""
    if name.startswith("corpus/") and name.endswith(".jsonl"):
        import zstandard

        return f"{name}.zst", zstandard.ZstdCompressor(level=1, write_checksum=True).compress(content)
    return name, content


def restored(folder: Path) -> Material:
    """The material of a folder that such files were written to."""
    pools = {language: tuple(found) for language, found in json.loads((folder / "pools.json").read_bytes()).items()}
    dialogues = {}
    for path in sorted(folder.glob("dialogues/*.jsonl")):
        with path.open(encoding="utf-8", newline="\n") as lines:
            dialogues[path.stem] = [from_json(json.loads(line)) for line in lines]
    corpus = folder / "corpus"
    return Material(dialogues=dialogues, pools=pools, corpus=corpus if corpus.is_dir() else None)


def as_json(example: Example) -> dict[str, Any]:
    """Everything of an example, fields at their defaults left out."""
    plain = Example(skill=example.skill, language=example.language, messages=example.messages)
    kept = {name: value for name, value in asdict(example).items() if value != asdict(plain)[name]}
    return kept | {"skill": example.skill, "language": example.language, "messages": asdict(example)["messages"]}


def from_json(found: dict[str, Any]) -> Example:
    """The example again, equal to what `as_json` was given."""
    fields = dict(found)
    fields["messages"] = tuple(_message(one) for one in found["messages"])
    fields["tools"] = tuple(Tool(**one) for one in found.get("tools", ()))
    if "response_format" in found:
        fields["response_format"] = ResponseFormat(**found["response_format"])
    for name in ("phrases", "forbidden", "checks"):
        fields[name] = tuple(found.get(name, ()))
    return Example(**fields)


def _message(found: dict[str, Any]) -> Message:
    content = tuple(TextPart(**part) for part in found["content"])
    calls = tuple(ToolCall(**call) for call in found["tool_calls"])
    return Message(**{**found, "content": content, "tool_calls": calls})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
