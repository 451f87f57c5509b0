"""What every recipe takes from outside: the public sets that are there, and the texts of examples for a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smelt.chat.signatures import schema_signature, tool_signatures
from smelt.data.example import Example
from smelt.data.sources import SOURCES, Source


def available(data: Path | None) -> list[Source]:
    """The public sets that lie under `data`."""
    return [source for source in SOURCES if data is not None and source.available(data)]


def load_sources(data: Path | None, seed: int) -> dict[str, list[Example]]:
    """Examples of every public set there is."""
    return {source.name: source.examples(data, seed) for source in available(data) if data is not None}


def texts(examples: Iterator[Example]) -> Iterator[str]:
    """Every text of the examples as the renderer would encode it."""
    for example in examples:
        for message in example.messages:
            if message.text:
                yield message.text
            for call in message.tool_calls:
                yield call.name
                yield call.arguments
        if example.tools:
            yield tool_signatures(example.tools)
        if example.response_format.kind != "text":
            yield schema_signature(example.response_format)
