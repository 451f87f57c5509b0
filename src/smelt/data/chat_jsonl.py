"""Conversations from a JSONL file in OpenAI's fine-tuning format, hand-written or recorded by `smelt record`.

    {"messages": [...], "tools": [...], "parallel_tool_calls": true}     one conversation a line
    {"prompt": "...", "completion": "..."}                               or plain text and how it goes on

An assistant message may carry `"weight": 0`: it is context and not learned. A side field `metadata` may say how an
answer ended, and the schema it was held to. Everything else is refused with line and field, so that a wrong file is
found before it is trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from smelt.chat.renderer import Renderer
from smelt.core.errors import DataError, UserError
from smelt.core.messages import Message, ResponseFormat, Role, TextPart, Tool, ToolCall
from smelt.data.batches import Encoded, encode
from smelt.data.example import Example
from smelt.tokenizer import Tokenizer

_LINE_FIELDS = {"messages", "tools", "parallel_tool_calls", "functions", "metadata"}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE_FIELDS = {
    "assistant": {"role", "content", "name", "tool_calls", "weight", "refusal"},
    "tool": {"role", "content", "tool_call_id", "name"},
}
_PLAIN_FIELDS = {"role", "content", "name"}
_CUT_OFF = ("length", "content_filter")


@dataclass(frozen=True, kw_only=True)
class ChatRecord:
    """A conversation of line `line` (from 1). weights: per message, whether an assistant's turn is learned.

    logprobs: `logprobs.content` of the last answer, where the side field has it (recorded traffic, asked teachers).
    """

    line: int
    example: Example
    weights: tuple[bool, ...]
    finish_reason: str = "stop"
    logprobs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class TextRecord:
    """A text of line `line` and how it goes on; only the latter is learned."""

    line: int
    prompt: str
    completion: str
    finish_reason: str = "stop"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with a line. `field` is a path such as messages[2].content; empty: the line as a whole."""

    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", {self.field}" if self.field else "")
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class ChatFile:
    """What a file holds; `problems` are lines left out."""

    records: list[ChatRecord] = field(default_factory=list)
    texts: list[TextRecord] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class ProblemError(Exception):
    """What is wrong with one line; `path` names the field."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path, self.message = path, message


def read_chat_jsonl(path: Path | str, *, on_problem: Literal["raise", "skip"] = "raise") -> ChatFile:
    """All lines, checked; blank ones are passed over. Answers cut off by a limit or a filter become problems.

    Raises DataError for a file that cannot be read or holds nothing usable, and, unless problems are skipped, for the
    first ten of them.
    """
    found = ChatFile()
    for number, text in lines(Path(path)):
        try:
            record = record_of(number, text)
            (found.texts if isinstance(record, TextRecord) else found.records).append(record)  # type: ignore[arg-type]
        except ProblemError as error:
            found.problems.append(Problem(line=number, field=error.path, message=error.message))
    if found.problems and on_problem == "raise":
        shown = "; ".join(map(str, found.problems[:10]))
        more = f"; and {len(found.problems) - 10} more" if len(found.problems) > 10 else ""
        raise DataError(f"{Path(path).name}: {shown}{more}")
    if not found.records and not found.texts:
        why = f" ({found.problems[0]})" if found.problems else ""
        raise DataError(f"{Path(path).name}: sought conversations, found none that can be used{why}")
    return found


def encode_record(renderer: Renderer, record: ChatRecord) -> Encoded:
    """The conversation as ids; turns of weight 0 are context. Raises DataError for what cannot be rendered."""
    try:
        whole = encode(renderer, record.example)
        if all(record.weights):
            return whole
        mask = bytearray(whole.loss_mask)
        example = record.example
        for i, learned in enumerate(record.weights):
            if not learned:
                before, upto = (
                    len(
                        renderer.render(
                            example.messages[:n], tools=example.tools, response_format=example.response_format
                        )
                    )
                    for n in (i, i + 1)
                )
                mask[before:upto] = bytes(upto - before)
        return Encoded(whole.ids, bytes(mask), whole.privileges)
    except UserError as error:
        raise DataError(f"line {record.line}: {error.message}") from error


def encode_text(tokenizer: Tokenizer, record: TextRecord, end_id: int | None) -> Encoded:
    """Prompt and continuation as ids, the continuation learned, with `end_id` behind it where it ended by itself."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    prompt, rest = [*begin, *tokenizer.encode(record.prompt)], tokenizer.encode(record.completion)
    if end_id is not None and record.finish_reason == "stop":
        rest.append(end_id)
    return Encoded([*prompt, *rest], bytes(len(prompt)) + b"\x01" * len(rest))


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered from 1. Raises DataError for a file that cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None


def record_of(number: int, text: str) -> ChatRecord | TextRecord:
    """What a line holds. Raises ProblemError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ProblemError("", "not JSON; sought one object a line") from None
    if not isinstance(value, dict):
        raise ProblemError("", f"sought an object, found {_kind(value)}")
    about = value.get("metadata") or {}
    if not isinstance(about, dict):
        raise ProblemError("metadata", f"sought an object, found {_kind(about)}")
    reason = str(about.get("finish_reason") or "stop")
    if "prompt" in value:
        _known(value, {"prompt", "completion", "metadata"}, "")
        prompt, completion = (_string(value, name, "") for name in ("prompt", "completion"))
        return TextRecord(line=number, prompt=prompt, completion=completion, finish_reason=reason)
    _known(value, _LINE_FIELDS, "")
    if reason in _CUT_OFF:
        raise ProblemError("metadata.finish_reason", f"the answer was cut off ({reason})")
    if value.get("functions"):
        raise ProblemError("functions", "this old form is not supported; sought tools")
    bodies = _list(value, "messages", "")
    messages = tuple(_message(body, f"messages[{i}]") for i, body in enumerate(bodies))
    _check_order(messages)
    weights = tuple(_weight(body, f"messages[{i}]") for i, body in enumerate(bodies))
    if not any(weight and message.role == "assistant" for weight, message in zip(weights, messages, strict=True)):
        raise ProblemError("messages", "no assistant message to learn from")
    tools = tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(_list(value, "tools", "", [])))
    example = Example(
        skill="recorded",
        language="",
        messages=messages,
        tools=tools,
        response_format=_response_format((about.get("settings") or {}).get("response_format")),
    )
    return ChatRecord(
        line=number, example=example, weights=weights, finish_reason=reason, logprobs=_logprobs(about.get("logprobs"))
    )


def _logprobs(value: Any) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, list | None) or not all(isinstance(entry, dict) for entry in content or ()):
        raise ProblemError("metadata.logprobs.content", "sought a list of objects, as chat completions report them")
    return tuple(content or ())


def _message(body: Any, path: str) -> Message:
    if not isinstance(body, dict):
        raise ProblemError(path, f"sought an object, found {_kind(body)}")
    role = body.get("role")
    if role not in _ROLES:
        raise ProblemError(f"{path}.role", f"sought one of {', '.join(_ROLES)}, found {_shown(role)}")
    _known(body, _MESSAGE_FIELDS.get(role, _PLAIN_FIELDS), path)
    calls = tuple(_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(_list(body, "tool_calls", path, [])))
    content = body.get("content")
    if content is None and role == "assistant":
        content = body.get("refusal")
    if content is None and not calls:
        raise ProblemError(f"{path}.content", "sought a string or a list of text parts, found nothing")
    return Message(
        role=cast(Role, role),
        content=_content(content, f"{path}.content"),
        name=_optional(body, "name", path) if role != "tool" else None,
        tool_calls=calls,
        tool_call_id=_string(body, "tool_call_id", path) if role == "tool" else None,
    )


def _content(content: Any, path: str) -> tuple[TextPart, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, list):
        raise ProblemError(path, f"sought a string or a list of text parts, found {_kind(content)}")
    parts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in ("text", "refusal"):
            kind = part.get("type") if isinstance(part, dict) else _kind(part)
            raise ProblemError(f"{path}[{i}].type", f"sought text, found {_shown(kind)}; only text can be learned")
        parts.append(TextPart(_string(part, cast(str, part["type"]), f"{path}[{i}]")))
    return tuple(parts)


def _call(call: Any, path: str) -> ToolCall:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise ProblemError(path, "sought an object with id, type and function")
    function = call["function"]
    name, arguments = (_string(function, key, f"{path}.function") for key in ("name", "arguments"))
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        raise ProblemError(f"{path}.function.arguments", "not JSON") from None
    return ToolCall(id=_string(call, "id", path), name=name, arguments=arguments)


def _tool(tool: Any, path: str) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        raise ProblemError(path, 'sought {"type": "function", "function": {...}}')
    function = tool["function"]
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ProblemError(f"{path}.function.parameters", f"sought a JSON Schema, found {_kind(parameters)}")
    return Tool(
        name=_string(function, "name", f"{path}.function"),
        description=_optional(function, "description", f"{path}.function") or "",
        parameters=parameters,
        strict=bool(function.get("strict")),
    )


def _response_format(value: Any) -> ResponseFormat:
    """What a recorded answer was held to, so that the prompt is rendered as it will be when asked again."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_object":
        return ResponseFormat("json_object")
    if kind == "json_schema" and isinstance(spec := value.get("json_schema"), dict):
        return ResponseFormat("json_schema", name=str(spec.get("name") or ""), schema=spec.get("schema"))
    return ResponseFormat()


def _check_order(messages: tuple[Message, ...]) -> None:
    """Calls are answered, each once, before anyone else speaks; the last word is the assistant's."""
    if not messages:
        raise ProblemError("messages", "empty")
    waiting: set[str] = set()
    for i, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                raise ProblemError(f"messages[{i}].tool_call_id", "names no call that waits for a result")
            waiting.discard(message.tool_call_id)
            continue
        if waiting:
            raise ProblemError(f"messages[{i}].role", "sought the results of the calls before it (role tool)")
        waiting = {call.id for call in message.tool_calls}
        if len(waiting) < len(message.tool_calls):
            raise ProblemError(f"messages[{i}].tool_calls", "two calls have the same id")
    if messages[-1].role != "assistant":
        raise ProblemError(f"messages[{len(messages) - 1}].role", "sought assistant: the last message is learned")


def _weight(body: dict[str, Any], path: str) -> bool:
    weight = body.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ProblemError(f"{path}.weight", f"sought 0 or 1, found {_shown(weight)}")
    return bool(weight)


def _known(body: dict[str, Any], names: set[str], path: str) -> None:
    for name in body:
        if name not in names:
            where = f"{path}.{name}" if path else str(name)
            raise ProblemError(where, f"unknown field; sought {', '.join(sorted(names))}")


def _string(body: dict[str, Any], name: str, path: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise ProblemError(f"{path}.{name}".lstrip("."), f"sought a string, found {_kind(value)}")
    return value


def _optional(body: dict[str, Any], name: str, path: str) -> str | None:
    return None if body.get(name) is None else _string(body, name, path)


def _list(body: dict[str, Any], name: str, path: str, default: list[Any] | None = None) -> list[Any]:
    value = body.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, list):
        raise ProblemError(f"{path}.{name}".lstrip("."), f"sought a list, found {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    return repr(value)[:60]
