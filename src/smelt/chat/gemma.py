r"""Gemma's format.

    <bos><start_of_turn>user\nTEXT<end_of_turn>\n<start_of_turn>model\nTEXT<end_of_turn>\n ...

There are two roles. System and developer texts, and what is said about tools, go to the head of the next user turn, an
empty line after each; a tool's result is a user turn. None of that can be told apart again, so `parse` gives
user and assistant turns only. Calls are JSON objects, as Gemma's guide to function calling suggests.
"""

from __future__ import annotations

from collections.abc import Sequence

from smelt.chat.builder import PromptBuilder
from smelt.chat.call_scanner import TextReplyReader
from smelt.chat.checks import PRIVILEGES, check_message
from smelt.chat.llama3 import JSON_CALLS, json_call_instruction
from smelt.chat.renderer import CallSyntax, Rendered, ReplyReader
from smelt.chat.turns import CallNumbers, Markers, append, call_pieces, named_turns, split_turns, text_of
from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message, Privilege, ResponseFormat, Tool
from smelt.tokenizer import Tokenizer


class GemmaRenderer:
    """Gemma's format over a tokenizer with its turn tokens."""

    name = "gemma"
    markers = ("<bos>", "<start_of_turn>", "<end_of_turn>")

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UnsupportedError when a marker is missing."""
        self._tokenizer = tokenizer
        self._marks = Markers(tokenizer, self.name, self.markers)
        self._bos, self._start, self._end = map(self._marks.control, self.markers)

    @property
    def stop_ids(self) -> frozenset[int]:
        """<end_of_turn>, and the end of the text."""
        return self._marks.present("<end_of_turn>", "<eos>")

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
        waiting: list[tuple[str, Privilege]] = []  # texts for the head of the next user turn
        if preamble := json_call_instruction(tools, response_format):
            waiting.append((preamble, Privilege.DEVELOPER))
        for message in messages:
            check_message(message)
            privilege = PRIVILEGES[message.role]
            if message.role in ("system", "developer"):
                waiting.append((message.text, privilege))
                continue
            if waiting and message.role == "assistant":
                self._user(prompt, waiting, "", Privilege.USER)
            if message.role == "assistant":
                self._model(prompt, message)
            else:
                self._user(prompt, waiting, message.text, privilege)
            waiting = []
        if waiting:
            self._user(prompt, waiting, "", Privilege.USER)
        if open_turn:
            append(prompt, [self._start, "model\n"], Privilege.ASSISTANT)
        return prompt.rendered()

    def _user(
        self, prompt: PromptBuilder, heads: Sequence[tuple[str, Privilege]], text: str, privilege: Privilege
    ) -> None:
        opening: list[str] = ["user\n"]
        prompt.control(self._start.id, heads[0][1] if heads else privilege)
        for head, head_privilege in heads:
            prompt.text(f"{''.join(opening)}{head}\n\n", head_privilege)
            opening = []
        append(prompt, [*opening, text, self._end, "\n"], privilege)

    def _model(self, prompt: PromptBuilder, message: Message) -> None:
        # The header apart: a reply is generated after exactly these ids.
        append(prompt, [self._start, "model\n"], Privilege.ASSISTANT)
        gap = "\n" if message.text and message.tool_calls else ""
        reply = [message.text, gap, *call_pieces(message.tool_calls, JSON_CALLS), self._end]
        append(prompt, reply, Privilege.ASSISTANT, learn=True)
        append(prompt, ["\n"], Privilege.ASSISTANT)

    def parse(self, ids: Sequence[int]) -> tuple[Message, ...]:
        """User and assistant turns; see the module's words on what is lost."""
        found: list[Message] = []
        numbers = CallNumbers()
        turns = split_turns(self._tokenizer, ids, self._start.id, self._end.id)
        for role, content in named_turns(turns, separator="\n", open_role="model"):
            if role == "model":
                found.append(numbers.assistant(content, JSON_CALLS))
            elif role == "user":
                found.append(Message.of("user", text_of(content)))
            else:
                raise InvalidRequestError(f"sought user or model, found {role[:20]!r}")
        return tuple(found)

    def reader(self, tools: Sequence[Tool] = ()) -> ReplyReader:
        """A reader of one reply that recognises calls of `tools`."""
        return TextReplyReader(self._tokenizer, JSON_CALLS, [tool.name for tool in tools])
