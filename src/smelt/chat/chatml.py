r"""ChatML as Qwen2.5 and Qwen3 write it (also SmolLM2 and others of the same markers).

    <|im_start|>ROLE\nTEXT<|im_end|>\n ...

Tools are described in the system turn, calls stand in <tool_call>, results in <tool_response> inside a user turn, as
Qwen's documentation of function calling says. No default system prompt is put in where the caller gave none
(Qwen2.5's own template adds one). Where the folder's template knows `enable_thinking`, the open turn says that no
thinking is wanted, in the form that template uses.
"""

from __future__ import annotations

from collections.abc import Sequence

from smelt.chat.builder import PromptBuilder
from smelt.chat.call_scanner import Symbol, TextReplyReader
from smelt.chat.checks import PRIVILEGES, check_message
from smelt.chat.renderer import CallSyntax, Control, Rendered, ReplyReader
from smelt.chat.turns import (
    CallNumbers,
    Markers,
    Piece,
    append,
    call_pieces,
    format_instruction,
    named_turns,
    split_turns,
    text_of,
    tool_json,
)
from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message, Privilege, ResponseFormat, Tool
from smelt.tokenizer import Tokenizer


class ChatMLRenderer:
    """ChatML over a tokenizer with <|im_start|> and <|im_end|>."""

    name = "chatml"
    markers = ("<|im_start|>", "<|im_end|>")

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UnsupportedError when a marker is missing."""
        self._tokenizer = tokenizer
        marks = self._marks = Markers(tokenizer, self.name, self.markers)
        self._start, self._end = marks.control("<|im_start|>"), marks.control("<|im_end|>")
        self._response = (marks.piece("<tool_response>"), marks.piece("</tool_response>"))
        self._syntax = CallSyntax(
            begin=(marks.piece("<tool_call>"), '\n{"name": "'),
            middle=('", "arguments": ',),
            end=("}\n", marks.piece("</tool_call>")),
            between=("\n",),
        )
        thinks = "enable_thinking" in str(tokenizer.config.get("chat_template", ""))
        self._no_thoughts: tuple[Piece, ...] = (
            (marks.piece("<think>"), "\n\n", marks.piece("</think>"), "\n\n") if thinks else ()
        )

    @property
    def stop_ids(self) -> frozenset[int]:
        """<|im_end|>, and the end of the text."""
        return self._marks.present("<|im_end|>", "<|endoftext|>")

    @property
    def call_syntax(self) -> CallSyntax:
        """<tool_call>, a JSON object with name and arguments, </tool_call>, each on its line."""
        return self._syntax

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
        rest = list(messages)
        if preamble := self._preamble(tools, response_format):
            own = rest.pop(0).text if rest and rest[0].role in ("system", "developer") else ""
            pieces: list[Piece] = ["system\n", own, "\n\n" if own else "", *preamble]
            append(prompt, [self._start, *pieces, self._end, "\n"], Privilege.SYSTEM)
        for index, message in enumerate(rest):
            check_message(message)
            if message.role == "assistant":
                self._assistant(prompt, message)
            elif message.role == "tool":
                first = index == 0 or rest[index - 1].role != "tool"
                last = index + 1 == len(rest) or rest[index + 1].role != "tool"
                append(prompt, self._result(message.text, first=first, last=last), Privilege.TOOL)
            else:
                role = "user" if message.role == "user" else "system"
                turn: list[Piece] = [self._start, f"{role}\n", message.text, self._end, "\n"]
                append(prompt, turn, PRIVILEGES[message.role])
        if open_turn:
            append(prompt, [self._start, "assistant\n", *self._no_thoughts], Privilege.ASSISTANT)
        return prompt.rendered()

    def _preamble(self, tools: Sequence[Tool], response_format: ResponseFormat) -> list[Piece]:
        pieces: list[Piece] = []
        if tools:
            pieces.append(
                "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
                "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
            )
            pieces += ["\n" + tool_json(tool) for tool in tools]
            opening, closing = self._marks.piece("<tool_call>"), self._marks.piece("</tool_call>")
            pieces += [
                "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
            ]
            pieces += [opening, closing, " XML tags:\n", opening]
            pieces += ['\n{"name": <function-name>, "arguments": <args-json-object>}\n', closing]
        if instruction := format_instruction(response_format):
            pieces += ["\n\n" if tools else "", instruction]
        return pieces

    def _assistant(self, prompt: PromptBuilder, message: Message) -> None:
        # The header apart: a reply is generated after exactly these ids.
        append(prompt, [self._start, "assistant\n"], Privilege.ASSISTANT)
        gap = "\n" if message.text and message.tool_calls else ""
        reply = [message.text, gap, *call_pieces(message.tool_calls, self._syntax), self._end]
        append(prompt, reply, Privilege.ASSISTANT, learn=True)
        append(prompt, ["\n"], Privilege.ASSISTANT)

    def _result(self, text: str, *, first: bool, last: bool) -> list[Piece]:
        opening, closing = self._response
        before: list[Piece] = [self._start, "user"] if first else []
        after: list[Piece] = [self._end, "\n"] if last else []
        return [*before, "\n", opening, f"\n{text}\n", closing, *after]

    def parse(self, ids: Sequence[int]) -> tuple[Message, ...]:
        """Inverse of `render` for what the format keeps (see chat/turns.py)."""
        found: list[Message] = []
        numbers = CallNumbers()
        turns = split_turns(self._tokenizer, ids, self._start.id, self._end.id)
        for role, content in named_turns(turns, separator="\n", open_role="assistant"):
            if role == "assistant":
                found.append(numbers.assistant(content, self._syntax))
            elif role == "user":
                results = self._results(content)
                own = [Message.of("user", text_of(content))]
                found += [numbers.tool(result) for result in results] or own
            elif role == "system":
                found.append(Message.of("system", text_of(content)))
            else:
                raise InvalidRequestError(f"sought system, user or assistant, found {role[:20]!r}")
        return tuple(found)

    def _results(self, content: Sequence[Symbol]) -> list[str]:
        """Texts of the tool results a user turn consists of; none if it is a user's own."""
        opening, closing = self._response
        if not isinstance(opening, Control) or not isinstance(closing, Control) or opening.id not in content[:1]:
            return []
        results, current = list[str](), list[Symbol]()
        for symbol in content:
            if symbol == closing.id:
                results.append(text_of(current).removeprefix("\n").removesuffix("\n"))
            if symbol in (opening.id, closing.id):
                current = []
            else:
                current.append(symbol)
        return results

    def reader(self, tools: Sequence[Tool] = ()) -> ReplyReader:
        """A reader of one reply that recognises calls of `tools`."""
        return TextReplyReader(self._tokenizer, self._syntax, [tool.name for tool in tools])
