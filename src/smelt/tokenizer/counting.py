"""How many tokens OpenAI bills for a chat request, by the formula its cookbook publishes for gpt-4o-mini.

Source: the cookbook's "How to count tokens with tiktoken" (num_tokens_from_messages, num_tokens_for_tools), which
prints its results beside those of the API. It covers text messages, and functions whose properties are
scalars with a description. For anything else (tool calls in the history, nested schemas, content parts)
the same constants are applied to every text found, which is an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smelt.tokenizer.tokenizer import Tokenizer

_MESSAGE, _NAME, _REPLY = 3, 1, 3
_FUNCTION, _PROPERTIES, _PROPERTY, _ENUM, _ENUM_ITEM, _FUNCTIONS_END = 7, 3, 3, -3, 3, 12


@dataclass(frozen=True, slots=True)
class ChatCount:
    """Tokens of a request; `exact` is False where the formula was stretched to something it does not cover."""

    messages: int
    tools: int
    exact: bool

    @property
    def total(self) -> int:
        """Messages and tools."""
        return self.messages + self.tools


def count_chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> ChatCount:
    """Prompt tokens of an OpenAI chat request, given the o200k_base tokenizer."""
    counter = _Counter(tokenizer)
    return ChatCount(counter.messages(messages), counter.tools(tools), counter.exact)


class _Counter:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.exact = True

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Reply header, and for each message a frame and its values."""
        count = _REPLY
        for message in messages:
            count += _MESSAGE + (_NAME if message.get("name") is not None else 0)
            for value in message.values():
                if isinstance(value, str):
                    count += self._count(value)
                elif value is not None:
                    self.exact = False
                    count += sum(map(self._count, _texts(value)))
        return count

    def tools(self, tools: Sequence[Mapping[str, Any]]) -> int:
        """Each function, and a frame around all of them."""
        return sum(map(self._function, tools)) + _FUNCTIONS_END if tools else 0

    def _function(self, tool: Mapping[str, Any]) -> int:
        function = tool.get("function", {})
        description = str(function.get("description") or "").removesuffix(".")
        count = _FUNCTION + self._count(f"{function.get('name', '')}:{description}")
        properties = (function.get("parameters") or {}).get("properties") or {}
        if properties:
            count += _PROPERTIES + sum(self._property(name, schema) for name, schema in properties.items())
        return count

    def _property(self, name: str, schema: Any) -> int:
        if not isinstance(schema, Mapping) or not isinstance(schema.get("type"), str):
            self.exact = False
            return _PROPERTY + self._count(f"{name}:{json.dumps(schema, ensure_ascii=False)}")
        count = _PROPERTY
        if items := schema.get("enum"):
            count += _ENUM + sum(_ENUM_ITEM + self._count(str(item)) for item in items)
        description = str(schema.get("description") or "").removesuffix(".")
        count += self._count(f"{name}:{schema['type']}:{description}")
        if nested := {key: schema[key] for key in ("properties", "items", "anyOf") if key in schema}:
            self.exact = False
            count += self._count(json.dumps(nested, ensure_ascii=False))
        return count


def _texts(value: Any) -> Iterator[str]:
    """Every string inside lists and objects, the constant words of the request's own grammar left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _all_texts(entry for key, entry in value.items() if key not in ("type", "detail"))
    elif isinstance(value, list | tuple):
        yield from _all_texts(value)


def _all_texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        yield from _texts(value)
