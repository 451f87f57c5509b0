"""What a chat format must do. The only way messages become token ids, and back; no string template exists.

Text is encoded piece by piece and can never spell a control id (`Tokenizer.encode` guarantees it), so the
structure of a prompt is whatever the renderer put there and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from smelt.core.messages import Message, ResponseFormat, Tool


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt in ids. The three sequences have one entry per token.

    privileges: a `core.messages.Privilege` value per token. loss_mask: 1 where the assistant wrote the token
    (its text, its calls and the control token that ends its turn), 0 elsewhere: what training learns.
    """

    ids: list[int]
    privileges: bytes
    loss_mask: bytes

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Control:
    """A control token inside a CallSyntax, by id."""

    id: int


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How this format writes a tool call: begin, function name, middle, JSON arguments, end.

    Each field is a sequence of literal texts and control tokens; `generate.grammar` turns it into a grammar
    and the reply reader recognises it. `between` stands between two parallel calls.
    """

    begin: tuple[str | Control, ...]
    middle: tuple[str | Control, ...]
    end: tuple[str | Control, ...] = ()
    between: tuple[str | Control, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Answer text became visible; complete UTF-8 only."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call's name is complete."""

    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """A piece of the current call's JSON arguments."""

    text: str


ReplyEvent = TextDelta | CallStart | ArgumentsDelta


class ReplyReader(Protocol):
    """Reads one generated reply, token by token. A stop id is not fed."""

    def feed(self, token_id: int) -> Sequence[ReplyEvent]:
        """What became visible with this token."""
        ...

    def finish(self) -> Sequence[ReplyEvent]:
        """What was held back (an incomplete UTF-8 sequence shows as U+FFFD)."""
        ...


class Renderer(Protocol):
    """One chat format over one tokenizer."""

    @property
    def name(self) -> str:
        """ "house", "chatml", "llama3" or "gemma"."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an assistant turn."""
        ...

    @property
    def call_syntax(self) -> CallSyntax:
        """How a tool call is written."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat = ResponseFormat(),  # noqa: B008 - frozen value
        open_turn: bool = False,
    ) -> Rendered:
        """The prompt; `open_turn` appends the header of the assistant turn to be generated."""
        ...

    def parse(self, ids: Sequence[int]) -> tuple[Message, ...]:
        """Inverse of `render` for its messages (tool definitions and an open turn are skipped)."""
        ...

    def reader(self, tools: Sequence[Tool] = ()) -> ReplyReader:
        """A reader for a reply generated after `render(..., open_turn=True)`."""
        ...
