"""Raw completions: the prompt given back (`echo`), and OpenAI's four parallel lists of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smelt.chat.renderer import ReplyEvent, TextDelta
from smelt.core.errors import InvalidRequestError
from smelt.generate.events import AnswerEvent, TokenReport, TokenText

if TYPE_CHECKING:
    from smelt.tokenizer import Tokenizer


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


Event = AnswerEvent | PromptText  # what an answer's stream may hold


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
            self.top_logprobs.append(None if token.logprob is None else _by_name(entry.top))
            self.text_offset.append(self._chars)
            self._advance(token.bytes)

    def _advance(self, raw: bytes) -> None:
        self._seen += raw
        text = self._seen.decode("utf-8", "replace")
        tail = _incomplete_tail(self._seen)
        self._chars += len(text) - (1 if tail else 0)
        self._seen = self._seen[len(self._seen) - tail :]


def _by_name(top: Sequence[TokenText]) -> dict[str, float]:
    """Alternatives by name, best first. Of two tokens with one name (`e` and `<0x65>`) the better one counts."""
    named: dict[str, float] = {}
    for alternative in top:
        named.setdefault(_name(alternative.text, alternative.bytes), alternative.logprob)
    return named


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


class TextReader:
    """A ReplyReader for raw text: no calls, nothing but characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = tokenizer.stream()

    def feed(self, token_id: int) -> Sequence[ReplyEvent]:
        """Text that became complete with this token."""
        return _delta(self._decoder.feed(token_id))

    def finish(self) -> Sequence[ReplyEvent]:
        """An unfinished character, as U+FFFD."""
        return _delta(self._decoder.flush())


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A completion's prompt: ids for the model, of which the first `num_hidden` are not the caller's."""

    ids: list[int]
    num_hidden: int
    text: str


def raw_prompt(
    tokenizer: Tokenizer, prompt: str | Sequence[int], *, first_ids: frozenset[int] = frozenset()
) -> RawPrompt:
    """Text is encoded after the begin id, if the model wants one; ids are taken as they are.

    Raises InvalidRequestError for an empty prompt, and for ids that do not exist or are control ids: control tokens
    are the renderer's to place. In front the begin id and `first_ids` are allowed: a text begins after them.
    """
    if isinstance(prompt, str):
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        ids = begin + tokenizer.encode(prompt)
        num_hidden, text = len(begin), prompt
    else:
        ids, num_hidden = list(prompt), 0
        _check_ids(tokenizer, ids, first_ids | {tokenizer.bos_id})
        text = tokenizer.decode(ids)
    if not ids:
        raise InvalidRequestError("The prompt is empty; expected at least one token.", param="prompt")
    return RawPrompt(ids, num_hidden, text)


def _check_ids(tokenizer: Tokenizer, ids: Sequence[int], first_ids: frozenset[int | None]) -> None:
    control = frozenset(tokenizer.control_ids.values())
    for place, token_id in enumerate(ids):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise InvalidRequestError(
                f"Invalid token in prompt[{place}]: {token_id}. Expected ids of 0 to {tokenizer.vocab_size - 1}.",
                param="prompt",
                code="invalid_value",
            )
        if token_id in control and not (place == 0 and token_id in first_ids):
            raise InvalidRequestError(
                f"Invalid token in prompt[{place}]: {token_id} is a control token, which a prompt cannot contain.",
                param="prompt",
                code="invalid_value",
            )


def _delta(text: str) -> Sequence[ReplyEvent]:
    return (TextDelta(text),) if text else ()
