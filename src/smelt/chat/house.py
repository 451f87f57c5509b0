"""The house format: what smelt's own models read and write.

    conversation = bos [tools SIGNATURES end] [schema SIGNATURE end] turn...
    turn         = ROLE [name TEXT] [id TEXT] [body] content (call TEXT args TEXT)... end (id TEXT)...
    content      = nothing | TEXT | (part [TEXT])...

Small words are control tokens, capitals are encoded text. `body` stands only after a header field. One
non-empty part is written bare; any other number of parts, or an empty one, opens each with `part`. The ids of an
assistant's calls follow its `end`, one per call: what a model generates (content, calls, end) is then, token for
token, how history shows it, and the model never has to invent an id.
"""

from __future__ import annotations

from collections.abc import Sequence

from smelt.chat.builder import PromptBuilder
from smelt.chat.checks import PRIVILEGES, check_message
from smelt.chat.house_parse import HouseParser
from smelt.chat.house_reader import HouseReader
from smelt.chat.renderer import CallSyntax, Control, Rendered, ReplyReader
from smelt.chat.signatures import schema_signature, tool_signatures
from smelt.core.errors import UnsupportedError
from smelt.core.messages import ContentPart, Message, Privilege, ResponseFormat, Tool
from smelt.tokenizer import Tokenizer

_NAMES = (
    "pad bos end system developer user assistant tool name id body part tools schema call args "
    "image reserved_0 reserved_1 reserved_2 reserved_3 reserved_4 reserved_5 reserved_6 reserved_7"
)
HOUSE_CONTROLS: tuple[str, ...] = tuple(f"<|{name}|>" for name in _NAMES.split())


class HouseRenderer:
    """The house format over a tokenizer that has its control tokens."""

    name = "house"
    markers = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|call|>", "<|args|>")

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UnsupportedError when the tokenizer lacks a house control token."""
        self._tokenizer = tokenizer
        required = [control for control in HOUSE_CONTROLS if "reserved" not in control and control != "<|image|>"]
        if missing := [control for control in required if control not in tokenizer.control_ids]:
            raise UnsupportedError(f"the house chat format needs the control tokens {', '.join(missing)}")
        self._ids = {control[2:-2]: tokenizer.control_ids[control] for control in required}

    @property
    def end_id(self) -> int:
        """The id that closes a turn."""
        return self._ids["end"]

    @property
    def stop_ids(self) -> frozenset[int]:
        """`end`, and every control that has no place in an assistant's turn: a model that goes astray stops."""
        inside = {self._ids["call"], self._ids["args"]}
        return frozenset(self._tokenizer.control_ids.values()) - inside

    @property
    def call_syntax(self) -> CallSyntax:
        """A call is `call` name `args` JSON; the next one follows at once."""
        return CallSyntax(begin=(Control(self._ids["call"]),), middle=(Control(self._ids["args"]),))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat = ResponseFormat(),  # noqa: B008 - frozen value
        open_turn: bool = False,
    ) -> Rendered:
        """The prompt. Raises InvalidRequestError for a message, a schema or a text that cannot be rendered."""
        prompt = PromptBuilder(self._tokenizer)
        prompt.control(self._ids["bos"], Privilege.SYSTEM)
        if tools:
            self._section(prompt, "tools", tool_signatures(tools))
        if response_format.kind != "text":
            self._section(prompt, "schema", schema_signature(response_format))
        for message in messages:
            self._turn(prompt, message)
        if open_turn:
            prompt.control(self._ids["assistant"], Privilege.ASSISTANT)
        return prompt.rendered()

    def _section(self, prompt: PromptBuilder, control: str, text: str) -> None:
        prompt.control(self._ids[control], Privilege.DEVELOPER)
        prompt.text(text, Privilege.DEVELOPER)
        prompt.control(self._ids["end"], Privilege.DEVELOPER)

    def _turn(self, prompt: PromptBuilder, message: Message) -> None:
        check_message(message)
        privilege = PRIVILEGES[message.role]
        learn = message.role == "assistant"
        prompt.control(self._ids[message.role], privilege)
        headers = [("name", message.name), ("id", message.tool_call_id)]
        for control, value in headers:
            if value is not None:
                prompt.control(self._ids[control], privilege)
                prompt.text(value, privilege)
        if any(value is not None for _, value in headers):
            prompt.control(self._ids["body"], privilege)
        self._content(prompt, message.content, privilege, learn)
        for call in message.tool_calls:
            prompt.control(self._ids["call"], privilege, learn=True)
            prompt.text(call.name, privilege, learn=True)
            prompt.control(self._ids["args"], privilege, learn=True)
            prompt.text(call.arguments, privilege, learn=True)
        prompt.control(self._ids["end"], privilege, learn=learn)
        for call in message.tool_calls:
            prompt.control(self._ids["id"], privilege)
            prompt.text(call.id, privilege)

    def _content(self, prompt: PromptBuilder, parts: Sequence[ContentPart], privilege: Privilege, learn: bool) -> None:
        bare = len(parts) == 1 and bool(parts[0].text)
        for part in parts:
            if not bare:
                prompt.control(self._ids["part"], privilege)
            prompt.text(part.text, privilege, learn=learn)

    def parse(self, ids: Sequence[int]) -> tuple[Message, ...]:
        """Inverse of `render`; raises InvalidRequestError saying what was sought and found."""
        return HouseParser(self._tokenizer, self._ids, ids).messages()

    def reader(self, tools: Sequence[Tool] = ()) -> ReplyReader:
        """A reader of one reply; calls are recognised by their control ids, whatever the tools."""
        return HouseReader(self._tokenizer, call_id=self._ids["call"], args_id=self._ids["args"])
