"""Messages, content parts, tools: what a conversation is, before any token and after any API.

All values are frozen and hashable where their fields are, so that they can be compared in round-trip tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Privilege(IntEnum):
    """Who speaks, for every token of a prompt; lower numbers are trusted more.

    The order is the instruction hierarchy: system > developer > user > assistant > media > tool.
    Control tokens carry the privilege of the message they delimit.
    """

    SYSTEM = 0
    DEVELOPER = 1
    USER = 2
    ASSISTANT = 3
    MEDIA = 4
    TOOL = 5


@dataclass(frozen=True, slots=True)
class TextPart:
    """One piece of text content. Any Unicode string without lone surrogates."""

    text: str


ContentPart = TextPart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant made. `arguments` is JSON text, kept exactly as written."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    `content` is a tuple of parts: empty for an assistant turn that only calls tools. `tool_calls` only on an
    assistant turn, `tool_call_id` only on a tool turn; `name` is the optional participant name.
    """

    role: Role
    content: tuple[ContentPart, ...] = ()
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @classmethod
    def of(cls, role: Role, text: str, **fields: Any) -> Message:
        """A turn with one text part."""
        return cls(role=role, content=(TextPart(text),), **fields)

    @property
    def text(self) -> str:
        """All text parts joined, nothing between them."""
        return "".join(part.text for part in self.content)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the assistant may call. `parameters` is a JSON Schema (an object schema), `{}` for none."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools may or must be called.

    mode "none": no call; "auto": the model decides; "required": at least one call.
    `allowed`: None for every tool, else the names the call must come from (a named choice is
    mode "required" with one allowed name).
    """

    mode: Literal["none", "auto", "required"] = "auto"
    allowed: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the text of the answer must be.

    kind "text": anything; "json_object": any JSON object; "json_schema": valid under `schema`.
    """

    kind: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    schema: Mapping[str, Any] | None = None
    description: str = ""
    strict: bool = False
