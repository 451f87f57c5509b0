r"""Llama 3's format.

    <|begin_of_text|><|start_header_id|>ROLE<|end_header_id|>\n\nTEXT<|eot_id|> ...

Tools are described in the system turn, a call is the JSON object {"name": ..., "parameters": ...}, results come as
role `ipython`. Neither the dates that Llama 3.1's template adds nor its trimming of texts is imitated.
"""

from __future__ import annotations

from collections.abc import Sequence

from smelt.chat.builder import PromptBuilder
from smelt.chat.call_scanner import Symbol, TextReplyReader
from smelt.chat.checks import PRIVILEGES, check_message
from smelt.chat.renderer import CallSyntax, Rendered, ReplyReader
from smelt.chat.turns import (
    CallNumbers,
    Markers,
    append,
    call_pieces,
    format_instruction,
    named_turns,
    split_turns,
    text_of,
    tool_json,
)
from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message, Privilege, ResponseFormat, Role, Tool
from smelt.tokenizer import Tokenizer

JSON_CALLS = CallSyntax(begin=('{"name": "',), middle=('", "parameters": ',), end=("}",), between=("\n",))

_ROLES: dict[Role, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "ipython",
}


def json_call_instruction(tools: Sequence[Tool], response_format: ResponseFormat) -> str:
    """What the first turn says about tools and about a required JSON answer; empty without either."""
    parts = []
    if tools:
        listed = "\n".join(map(tool_json, tools))
        parts.append(
            "You can call these functions. To call one, answer with JSON only, in the form "
            '{"name": function name, "parameters": dictionary of argument name and its value}, '
            f"one call a line.\n\n{listed}"
        )
    if instruction := format_instruction(response_format):
        parts.append(instruction)
    return "\n\n".join(parts)


class Llama3Renderer:
    """Llama 3's format over a tokenizer with its header tokens."""

    name = "llama3"
    markers = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UnsupportedError when a marker is missing."""
        self._tokenizer = tokenizer
        self._marks = Markers(tokenizer, self.name, self.markers)
        self._bos, self._start, self._header_end, self._end = map(self._marks.control, self.markers)

    @property
    def stop_ids(self) -> frozenset[int]:
        """<|eot_id|>, and the ends of a message and of the text."""
        return self._marks.present("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")

    @property
    def call_syntax(self) -> CallSyntax:
        """A JSON object with name and parameters."""
        return JSON_CALLS

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat = ResponseFormat(),  # noqa: B008 - frozen value
        open_turn: bool = False,
    ) -> Rendered:
        """The prompt. Raises InvalidRequestError for a message or a text that cannot be rendered."""
        prompt = PromptBuilder(self._tokenizer)
        prompt.control(self._bos.id, Privilege.SYSTEM)
        rest = list(messages)
        if preamble := json_call_instruction(tools, response_format):
            own = rest.pop(0).text if rest and rest[0].role in ("system", "developer") else ""
            rest.insert(0, Message.of("system", f"{own}\n\n{preamble}" if own else preamble))
        for message in rest:
            check_message(message)
            privilege = PRIVILEGES[message.role]
            self._header(prompt, message.role)
            if message.role != "assistant":
                append(prompt, [f"\n\n{message.text}", self._end], privilege)
                continue
            # The line ends apart: a reply is generated after exactly these ids.
            prompt.text("\n\n", privilege)
            gap = "\n" if message.text and message.tool_calls else ""
            reply = [message.text, gap, *call_pieces(message.tool_calls, JSON_CALLS), self._end]
            append(prompt, reply, privilege, learn=True)
        if open_turn:
            self._header(prompt, "assistant")
            prompt.text("\n\n", Privilege.ASSISTANT)
        return prompt.rendered()

    def _header(self, prompt: PromptBuilder, role: Role) -> None:
        append(prompt, [self._start, _ROLES[role], self._header_end], PRIVILEGES[role])

    def parse(self, ids: Sequence[int]) -> tuple[Message, ...]:
        """Inverse of `render` for what the format keeps (see chat/turns.py)."""
        found: list[Message] = []
        numbers = CallNumbers()
        separator: list[Symbol] = [self._header_end.id, "\n", "\n"]
        turns = split_turns(self._tokenizer, ids, self._start.id, self._end.id)
        for role, content in named_turns(turns, separator=separator, open_role="assistant"):
            if role == "assistant":
                found.append(numbers.assistant(content, JSON_CALLS))
            elif role == "ipython":
                found.append(numbers.tool(text_of(content)))
            elif role == "system":
                found.append(Message.of("system", text_of(content)))
            elif role == "user":
                found.append(Message.of("user", text_of(content)))
            else:
                raise InvalidRequestError(f"sought system, user, assistant or ipython, found {role[:20]!r}")
        return tuple(found)

    def reader(self, tools: Sequence[Tool] = ()) -> ReplyReader:
        """A reader of one reply that recognises calls of `tools`."""
        return TextReplyReader(self._tokenizer, JSON_CALLS, [tool.name for tool in tools])
