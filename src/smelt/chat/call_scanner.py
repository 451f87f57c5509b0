"""Finds tool calls in the replies of formats that write them as text.

A reply is a sequence of symbols: characters, and the ids of control tokens. What may be the beginning of a call is
held back until it is one or is not; a call counts from the moment its begin, a known name and its middle are
complete, and whatever turns out to be none of these is text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from smelt.chat.renderer import ArgumentsDelta, CallStart, CallSyntax, Control, ReplyEvent, TextDelta
from smelt.tokenizer import Tokenizer

Symbol = str | int
Match = Literal["full", "partial", "no"]

MAX_NAME_CHARS = 256


def symbols(parts: Iterable[str | Control]) -> list[Symbol]:
    """Characters and control ids of a piece of syntax."""
    found: list[Symbol] = []
    for part in parts:
        found.extend([part.id] if isinstance(part, Control) else part)
    return found


def _match(pattern: Sequence[Symbol], held: Sequence[Symbol], at: int = 0) -> Match:
    """Whether `held[at:]` begins with `pattern`, or may when more comes."""
    have = held[at : at + len(pattern)]
    if list(pattern[: len(have)]) != list(have):
        return "no"
    return "full" if len(have) == len(pattern) else "partial"


class JsonEnd:
    """Finds where a JSON value ends, one character at a time; brackets are counted, not paired."""

    def __init__(self) -> None:
        self._kind: Literal["unseen", "nested", "string", "scalar"] = "unseen"
        self._depth = 0
        self._quoted = self._escaped = False

    def step(self, char: str) -> Literal["more", "last", "after"]:
        """ "more": the value goes on; "last": it ends with `char`; "after": it ended before `char`."""
        if self._kind == "unseen":
            if char.isspace():
                return "more"
            self._kind = "nested" if char in "{[" else "string" if char == '"' else "scalar"
            self._depth = int(self._kind == "nested")
            self._quoted = self._kind == "string"
            return "after" if char in "}]," else "more"
        if self._kind == "scalar":
            return "after" if char in "}]," or char.isspace() else "more"
        if self._quoted:
            closes = char == '"' and not self._escaped
            self._escaped = char == "\\" and not self._escaped
            self._quoted = not closes
            return "last" if closes and self._kind == "string" else "more"
        self._quoted = char == '"'
        self._depth += (char in "{[") - (char in "}]")
        return "more" if self._depth else "last"


class CallScanner:
    """Symbols in, events out. `names` are the functions that can be called; None takes any name."""

    def __init__(self, syntax: CallSyntax, names: Collection[str] | None) -> None:
        begin = symbols(syntax.begin)
        # What stands between two calls belongs to the syntax before the first one too.
        self._begins = [begin, symbols(syntax.between) + begin]
        self._middle, self._end = symbols(syntax.middle), symbols(syntax.end)
        self._names = names
        self._state: Literal["text", "arguments", "end"] = "text"
        self._held: list[Symbol] = []
        self._json = JsonEnd()
        self._events: list[ReplyEvent] = []

    def feed(self, new: Iterable[Symbol]) -> list[ReplyEvent]:
        """What became visible."""
        for symbol in new:
            self._held.append(symbol)
            while self._held and self._step():
                pass
        return self._take_events()

    def finish(self) -> list[ReplyEvent]:
        """What was held back. An unfinished `end` is syntax and writes nothing."""
        if self._state == "text":
            self._release(len(self._held))
        self._held.clear()
        return self._take_events()

    def _step(self) -> bool:
        """Consume what can be consumed of the held symbols; False to wait for more."""
        if self._state == "text":
            return self._text()
        if self._state == "arguments":
            return self._argument()
        found = _match(self._end, self._held)
        if found == "full":
            del self._held[: len(self._end)]
        if found != "partial":
            self._state = "text"
        return found != "partial"

    def _text(self) -> bool:
        waiting = False
        for begin in self._begins:
            found = _match(begin, self._held)
            if found == "full":
                found, name, length = self._call_name(len(begin))
                if found == "full":
                    del self._held[:length]
                    self._events.append(CallStart(name))
                    self._state, self._json = "arguments", JsonEnd()
                    return True
            waiting = waiting or found == "partial"
        if not waiting:
            self._release(1)
        return not waiting

    def _call_name(self, at: int) -> tuple[Match, str, int]:
        """A name and the middle at `held[at:]`: how well they match, the name, where the middle ends."""
        if self._names is not None:
            candidates: Collection[str] = self._names
        else:
            rest = self._held[at : at + MAX_NAME_CHARS]
            stop = next((i for i, symbol in enumerate(rest) if symbol == self._middle[0]), None)
            if stop is None:
                plain = len(rest) < MAX_NAME_CHARS and all(isinstance(s, str) and s != "\n" for s in rest)
                return ("partial" if plain else "no"), "", at
            candidates = ["".join(map(str, rest[:stop]))]
        best: Match = "no"
        for name in candidates:
            pattern = [*name, *self._middle]
            found = _match(pattern, self._held, at)
            if found == "full":
                return "full", name, at + len(pattern)
            best = found if found == "partial" else best
        return best, "", at

    def _argument(self) -> bool:
        symbol = self._held[0]
        if isinstance(symbol, int):  # a control token cannot stand inside arguments: they end here
            self._state = "end"
            return True
        where = self._json.step(symbol)
        if where != "after":
            self._show(ArgumentsDelta(symbol))
            del self._held[0]
        if where != "more":
            self._state = "end"
            if not self._end:
                self._state = "text"
        return True

    def _release(self, count: int) -> None:
        text = "".join(symbol for symbol in self._held[:count] if isinstance(symbol, str))
        del self._held[:count]
        if text:
            self._show(TextDelta(text))

    def _show(self, event: TextDelta | ArgumentsDelta) -> None:
        """Append an event, joined to the one before it if that is of the same kind."""
        if self._events and type(self._events[-1]) is type(event):
            last = self._events.pop()
            assert isinstance(last, TextDelta | ArgumentsDelta)
            event = type(event)(last.text + event.text)
        self._events.append(event)

    def _take_events(self) -> list[ReplyEvent]:
        events, self._events = self._events, []
        return events


class TextReplyReader:
    """A ReplyReader over a CallScanner: tokens become symbols, a control token is one symbol."""

    def __init__(self, tokenizer: Tokenizer, syntax: CallSyntax, names: Collection[str] | None) -> None:
        self._decoder = tokenizer.stream()
        self._controls = frozenset(tokenizer.control_ids.values())
        self._scanner = CallScanner(syntax, names)

    def feed(self, token_id: int) -> Sequence[ReplyEvent]:
        """What became visible with this token."""
        if token_id in self._controls:
            return self._scanner.feed([*self._decoder.flush(), token_id])
        return self._scanner.feed(self._decoder.feed(token_id))

    def finish(self) -> Sequence[ReplyEvent]:
        """What was held back; an incomplete UTF-8 sequence shows as U+FFFD."""
        events = self._scanner.feed(self._decoder.flush())
        return [*events, *self._scanner.finish()]
