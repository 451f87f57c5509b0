"""Raw completions: the prompt given back (`echo`), and OpenAI's four parallel lists of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from smelt.generate.events import TokenReport, TokenText


@dataclass(frozen=True, slots=True)
class PromptToken:
    """One token of an echoed prompt. `logprob` is None for the first: nothing came before it."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float | None
    top: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptText:
    """The prompt of choice `choice`, before any AnswerText. `tokens` is empty unless logprobs were asked."""

    choice: int
    text: str
    tokens: tuple[PromptToken, ...] = ()


@dataclass(slots=True)
class LogprobLists:
    """`choices[].logprobs` of /v1/completions: four lists with one entry per token.

    text_offset counts characters from the start of the returned text (echoed prompt included); a token that
    only holds part of a character has the offset of that character.
    """

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    _seen: bytes = b""
    _chars: int = 0

    def add(self, entries: Sequence[TokenReport | PromptToken]) -> None:
        """Append the tokens of one event."""
        for entry in entries:
            token = entry.token if isinstance(entry, TokenReport) else entry
            self.tokens.append(_name(token.text, token.bytes))
            self.token_logprobs.append(token.logprob)
            self.top_logprobs.append(
                None if token.logprob is None else {_name(alt.text, alt.bytes): alt.logprob for alt in entry.top}
            )
            self.text_offset.append(self._chars)
            self._advance(token.bytes)

    def _advance(self, raw: bytes) -> None:
        self._seen += raw
        text = self._seen.decode("utf-8", "replace")
        tail = _incomplete_tail(self._seen)
        self._chars += len(text) - (1 if tail else 0)
        self._seen = self._seen[len(self._seen) - tail :]


def _name(text: str, raw: bytes) -> str:
    """A token's name: its text, or `bytes:\\xe4\\xbd` where the bytes are not UTF-8, as OpenAI writes it."""
    if "\ufffd" not in text:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _incomplete_tail(raw: bytes) -> int:
    """How many bytes at the end begin a character that is not complete yet (0..3)."""
    for back in range(1, min(3, len(raw)) + 1):
        byte = raw[-back]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if needed > back else 0
    return 0
