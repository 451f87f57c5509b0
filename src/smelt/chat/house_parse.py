"""Back from ids of the house format to messages; chat/house.py draws the grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from smelt.chat.checks import PRIVILEGES
from smelt.core.errors import InvalidRequestError
from smelt.core.messages import ContentPart, Message, Role, TextPart, ToolCall
from smelt.tokenizer import Tokenizer


class HouseParser:
    """A recursive-descent parser over one sequence of ids."""

    def __init__(self, tokenizer: Tokenizer, controls: Mapping[str, int], ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._names = dict.fromkeys(tokenizer.control_ids.values(), "unused control")
        self._names |= {token_id: name for name, token_id in controls.items()}
        self._ids = ids
        self._at = 0

    def messages(self) -> tuple[Message, ...]:
        """Every turn; raises InvalidRequestError where the ids do not follow the grammar."""
        found: list[Message] = []
        if self._next() == "bos":
            self._at += 1
        for section in ("tools", "schema"):
            if self._next() == section:
                self._at += 1
                self._text()
                self._take("end")
        while (role := self._next()) is not None:
            if role not in PRIVILEGES:
                raise self._error("a role")
            self._at += 1
            if role == "assistant" and self._next() is None:
                break  # an open turn: the header of a reply to come
            found.append(self._turn(role))
        return tuple(found)

    def _turn(self, role: Role) -> Message:
        name = self._header("name")
        tool_call_id = self._header("id") if role == "tool" else None
        if name is not None or tool_call_id is not None:
            self._take("body")
        content = self._content()
        calls: list[tuple[str, str]] = []
        while role == "assistant" and self._next() == "call":
            self._at += 1
            call_name = self._text()
            self._take("args")
            calls.append((call_name, self._text()))
        self._take("end")
        tool_calls = []
        for call_name, arguments in calls:
            self._take("id")
            tool_calls.append(ToolCall(id=self._text(), name=call_name, arguments=arguments))
        return Message(role=role, content=content, name=name, tool_calls=tuple(tool_calls), tool_call_id=tool_call_id)

    def _header(self, control: str) -> str | None:
        if self._next() != control:
            return None
        self._at += 1
        return self._text()

    def _content(self) -> tuple[ContentPart, ...]:
        if bare := self._text():
            return (TextPart(bare),)
        parts: list[ContentPart] = []
        while self._next() == "part":
            self._at += 1
            parts.append(TextPart(self._text()))
        return tuple(parts)

    def _next(self) -> str | None:
        """Name of the control at the cursor, "text" before a text token, None at the end."""
        if self._at >= len(self._ids):
            return None
        token_id = self._ids[self._at]
        if not 0 <= token_id < self._tokenizer.vocab_size:
            raise InvalidRequestError(f"token {self._at}: id {token_id} is outside the vocabulary")
        return self._names.get(token_id, "text")

    def _text(self) -> str:
        start = self._at
        while self._next() == "text":
            self._at += 1
        return self._tokenizer.decode(self._ids[start : self._at])

    def _take(self, control: str) -> None:
        if self._next() != control:
            raise self._error(f"<|{control}|>")
        self._at += 1

    def _error(self, sought: str) -> InvalidRequestError:
        found = self._next() or "the end"
        return InvalidRequestError(f"not a house conversation: token {self._at}: sought {sought}, found {found}")
