"""Reads a reply in the house format, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from smelt.chat.renderer import ArgumentsDelta, CallStart, ReplyEvent, TextDelta
from smelt.tokenizer import Tokenizer


class HouseReader:
    """Calls are control ids, so nothing in the text is ever held back but an unfinished character.

    Never fails and never loses text. A call that is cut off before its arguments begin is not reported: nobody
    could call half a name, nor send it back as history. A control token without meaning where it stands writes nothing.
    """

    def __init__(self, tokenizer: Tokenizer, *, call_id: int, args_id: int) -> None:
        self._call_id, self._args_id = call_id, args_id
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream()
        self._state: Literal["text", "name", "arguments"] = "text"
        self._name = ""

    def feed(self, token_id: int) -> Sequence[ReplyEvent]:
        """What became visible with this token."""
        if token_id == self._call_id:
            events = self._leave()
            self._state, self._name = "name", ""
            return events
        if token_id == self._args_id and self._state == "name":
            self._leave()
            self._state = "arguments"
            return [CallStart(self._name)]
        return self._show(self._decoder.feed(token_id))

    def finish(self) -> Sequence[ReplyEvent]:
        """What was held back; an incomplete UTF-8 sequence shows as U+FFFD."""
        events = self._leave()
        self._state = "text"
        return events

    def _leave(self) -> list[ReplyEvent]:
        events = self._show(self._decoder.flush())
        self._decoder = self._tokenizer.stream()
        return events

    def _show(self, text: str) -> list[ReplyEvent]:
        if not text:
            return []
        if self._state == "name":
            self._name += text
            return []
        return [TextDelta(text) if self._state == "text" else ArgumentsDelta(text)]
