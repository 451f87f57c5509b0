"""What an answer looks like while it is being made: the contract between `generate` and `server` (and `cli`)."""

from __future__ import annotations

from dataclasses import dataclass

from smelt.core.sampling import FinishReason, Usage


@dataclass(frozen=True, slots=True)
class TokenText:
    """A reported token: its text (U+FFFD for partial UTF-8), exact bytes, id and natural-log probability."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenReport:
    """A token of the answer's text with its best alternatives, best first."""

    token: TokenText
    top: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerText:
    """More text of choice `choice`. `reports` is one entry per token shown, empty unless logprobs were asked."""

    choice: int
    text: str
    reports: tuple[TokenReport, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerCall:
    """Choice `choice` started its tool call number `call` (0, 1, ...) with a fresh id."""

    choice: int
    call: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class AnswerArguments:
    """More JSON text of the arguments of call `call`."""

    choice: int
    call: int
    text: str


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """Choice `choice` is complete. reason is STOP, LENGTH or TOOL_CALLS (ERROR raises instead)."""

    choice: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class AnswerUsage:
    """The last event: tokens of the whole request."""

    usage: Usage


AnswerEvent = AnswerText | AnswerCall | AnswerArguments | AnswerEnd | AnswerUsage
