"""One conversation to learn from, or to be asked: the value every source and generator yields."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from smelt.core.messages import Message, ResponseFormat, Tool, ToolCall


@dataclass(frozen=True, kw_only=True)
class Example:
    """A conversation whose last message is the assistant's right answer.

    `phrases`: texts a free answer must contain to count as right (calls and JSON are compared as values).
    `forbidden`: texts it must not hold, not even spelled backwards or in another case. `checks`: what else must be
    true of it, as `smelt.evals.obedience` reads them ("upper", "starts:Note").
    """

    skill: str
    language: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    response_format: ResponseFormat = ResponseFormat()
    phrases: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> Message:
        """The right answer."""
        return self.messages[-1]


def compact_json(value: Any) -> str:
    """JSON as the grammar writes it: no spaces, keys in the order given, characters as themselves."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def call_message(name: str, arguments: str, call_id: str = "call_0") -> Message:
    """An assistant turn with one tool call; `arguments` is JSON text."""
    return Message(role="assistant", tool_calls=(ToolCall(id=call_id, name=name, arguments=arguments),))
