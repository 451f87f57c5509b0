"""What the foreign formats share: turns between two markers, text and markers mixed, parsed back to messages.

Not recoverable by `parse` in any of them: participant names, the borders between content parts, `developer`
(read back as `system`), and call ids (numbered call_1, call_2, ... over the conversation; a tool turn gets the id
of the call it answers, by position). Tool definitions stay in the text of the system turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from smelt.chat.builder import PromptBuilder
from smelt.chat.call_scanner import CallScanner, Symbol
from smelt.chat.renderer import CallStart, CallSyntax, Control, TextDelta
from smelt.core.errors import InvalidRequestError, UnsupportedError
from smelt.core.messages import Message, Privilege, ResponseFormat, TextPart, Tool, ToolCall
from smelt.tokenizer import Tokenizer

Piece = str | Control


class Markers:
    """A foreign tokenizer's control tokens by name."""

    def __init__(self, tokenizer: Tokenizer, format_name: str, required: Sequence[str]) -> None:
        if missing := [name for name in required if name not in tokenizer.control_ids]:
            raise UnsupportedError(f"the {format_name} chat format needs the control tokens {', '.join(missing)}")
        self._ids = tokenizer.control_ids

    def control(self, name: str) -> Control:
        """A marker that must be there."""
        return Control(self._ids[name])

    def piece(self, name: str) -> Piece:
        """A marker that older vocabularies spell as text."""
        return Control(self._ids[name]) if name in self._ids else name

    def present(self, *names: str) -> frozenset[int]:
        """Ids of those that are there."""
        return frozenset(self._ids[name] for name in names if name in self._ids)


def append(prompt: PromptBuilder, pieces: Sequence[Piece], privilege: Privilege, *, learn: bool = False) -> None:
    """Append pieces; neighbouring texts are encoded together, as the format's own template would have them."""
    text = ""
    for piece in pieces:
        if isinstance(piece, Control):
            prompt.text(text, privilege, learn=learn)
            prompt.control(piece.id, privilege, learn=learn)
            text = ""
        else:
            text += piece
    prompt.text(text, privilege, learn=learn)


def tool_json(tool: Tool) -> str:
    """A tool as the JSON these formats show, in one line."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def format_instruction(response_format: ResponseFormat) -> str:
    """What the system turn says about a required JSON answer; empty for free text."""
    if response_format.kind == "text":
        return ""
    if response_format.schema is None:
        return "Answer with one JSON object and nothing else."
    schema = json.dumps(dict(response_format.schema), ensure_ascii=False, separators=(",", ":"))
    return f"Answer with JSON that is valid under this JSON Schema, and nothing else:\n{schema}"


def call_pieces(calls: Sequence[ToolCall], syntax: CallSyntax) -> list[Piece]:
    """An assistant's calls as the format writes them."""
    pieces: list[Piece] = []
    for call in calls:
        pieces += syntax.between if pieces else ()
        pieces += [*syntax.begin, call.name, *syntax.middle, call.arguments, *syntax.end]
    return pieces


@dataclass(frozen=True, slots=True)
class Turn:
    """The inside of a turn; `closed` is False when the ids end before the turn does."""

    symbols: list[Symbol]
    closed: bool = True


def split_turns(tokenizer: Tokenizer, ids: Sequence[int], start: int, end: int) -> Iterator[Turn]:
    """Every turn as characters and control ids.

    Raises InvalidRequestError where a turn begins inside another, or text other than white space stands between two.
    """
    controls = frozenset(tokenizer.control_ids.values())
    inside: list[Symbol] | None = None
    for where, run in _runs(ids, controls):
        if isinstance(run, list):
            text = tokenizer.decode(run)
            if inside is not None:
                inside.extend(text)
            elif text.strip():
                raise InvalidRequestError(f"token {where}: sought the beginning of a turn, found text")
        elif run == start:
            if inside is not None:
                raise InvalidRequestError(f"token {where}: a turn begins inside another")
            inside = []
        elif inside is None:
            if where:  # a token that begins the text may stand outside turns
                raise InvalidRequestError(f"token {where}: sought the beginning of a turn, found a control token")
        elif run == end:
            yield Turn(inside)
            inside = None
        else:
            inside.append(run)
    if inside is not None:
        yield Turn(inside, closed=False)


def named_turns(
    turns: Iterable[Turn], *, separator: Sequence[Symbol], open_role: str
) -> Iterator[tuple[str, list[Symbol]]]:
    """Role and content of turns written as role, separator, content; an open turn without content is skipped.

    Raises InvalidRequestError when a turn lacks the separator or is not closed.
    """
    for turn in turns:
        symbols, width = turn.symbols, len(separator)
        places = range(len(symbols) - width + 1)
        at = next((i for i in places if symbols[i : i + width] == list(separator)), None)
        if at is None:
            raise InvalidRequestError("a turn has no header")
        role, content = text_of(symbols[:at]), symbols[at + width :]
        if turn.closed:
            yield role, content
        elif role != open_role or text_of(content).strip():
            raise InvalidRequestError("the last turn is not closed")


def _runs(ids: Sequence[int], controls: frozenset[int]) -> Iterator[tuple[int, int | list[int]]]:
    """Single control ids, and runs of the others, with the place where each begins."""
    run: list[int] = []
    for where, token_id in enumerate(ids):
        if token_id not in controls:
            run.append(token_id)
            continue
        if run:
            yield where - len(run), run
            run = []
        yield where, token_id
    if run:
        yield len(ids) - len(run), run


def text_of(turn: Sequence[Symbol]) -> str:
    """The characters of a turn or of a part of it."""
    return "".join(symbol for symbol in turn if isinstance(symbol, str))


class CallNumbers:
    """Hands out call ids in order, and again to the tool turns that answer them."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[str] = []

    def assistant(self, symbols: Sequence[Symbol], syntax: CallSyntax) -> Message:
        """The assistant's message in a turn's content."""
        scanner = CallScanner(syntax, None)
        text, calls = "", list[ToolCall]()
        for event in [*scanner.feed(symbols), *scanner.finish()]:
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, CallStart):
                self._count += 1
                calls.append(ToolCall(f"call_{self._count}", event.name, ""))
            else:
                last = calls.pop()
                calls.append(ToolCall(last.id, last.name, last.arguments + event.text))
        self._open = [call.id for call in calls]
        content = () if calls and not text else (TextPart(text),)
        return Message(role="assistant", content=content, tool_calls=tuple(calls))

    def tool(self, text: str) -> Message:
        """A tool's message, with the id of the next call that waits for one."""
        call_id = self._open.pop(0) if self._open else None
        return Message.of("tool", text, tool_call_id=call_id)
