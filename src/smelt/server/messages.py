"""A request's messages: their JSON shapes, and the conversation they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message, TextPart, ToolCall
from smelt.server.errors import shown
from smelt.server.validation import ARRAY, STRING, Body, by_kind

FUNCTION_NAME = r"^[a-zA-Z0-9_-]+$"
PARTICIPANT_NAME = r"^[^\s<|\\/>]+$"
MAX_NAME_LEN = 64
MAX_ID_LEN = 256

ToolName = Annotated[str, Field(pattern=FUNCTION_NAME, max_length=MAX_NAME_LEN, min_length=1)]
Participant = Annotated[str, Field(pattern=PARTICIPANT_NAME, max_length=MAX_NAME_LEN, min_length=1)]
CallId = Annotated[str, Field(max_length=MAX_ID_LEN)]


class TextPartBody(Body):
    """A piece of text."""

    type: Literal["text"]
    text: str


class RefusalPartBody(Body):
    """A refusal the assistant wrote earlier."""

    type: Literal["refusal"]
    refusal: str


_TEXT_OR_PARTS = by_kind("a string or an array of objects")
TextContent = Annotated[
    Annotated[str, STRING] | Annotated[Annotated[list[TextPartBody], Field(min_length=1)], ARRAY], _TEXT_OR_PARTS
]
_AssistantPart = Annotated[TextPartBody | RefusalPartBody, Field(discriminator="type")]
AssistantContent = Annotated[
    Annotated[str, STRING] | Annotated[Annotated[list[_AssistantPart], Field(min_length=1)], ARRAY], _TEXT_OR_PARTS
]


class CalledFunction(Body):
    """Name and arguments of a call, arguments as JSON text."""

    name: ToolName
    arguments: str


class ToolCallBody(Body):
    """A call an assistant turn made."""

    id: CallId
    type: Literal["function"]
    function: CalledFunction


class SystemBody(Body):
    """A system turn."""

    role: Literal["system"]
    content: TextContent
    name: Participant | None = None


class DeveloperBody(Body):
    """A developer turn."""

    role: Literal["developer"]
    content: TextContent
    name: Participant | None = None


class UserBody(Body):
    """A user turn."""

    role: Literal["user"]
    content: TextContent
    name: Participant | None = None


class AssistantBody(Body):
    """An assistant turn: text, a refusal, calls, or text and calls."""

    role: Literal["assistant"]
    content: AssistantContent | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    name: Participant | None = None
    tool_calls: Annotated[list[ToolCallBody], Field(min_length=1)] | None = None


class ToolBody(Body):
    """A tool's answer to one call."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: CallId


MessageBody = Annotated[SystemBody | DeveloperBody | UserBody | AssistantBody | ToolBody, Field(discriminator="role")]


def conversation(bodies: Sequence[MessageBody]) -> tuple[Message, ...]:
    """The messages in core's words. Raises InvalidRequestError where calls and their results do not match."""
    _check_calls(bodies)
    return tuple(_message(i, body) for i, body in enumerate(bodies))


def _message(i: int, body: MessageBody) -> Message:
    if isinstance(body, ToolBody):
        return Message(role="tool", content=_parts(body.content), tool_call_id=body.tool_call_id)
    if not isinstance(body, AssistantBody):
        return Message(role=body.role, content=_parts(body.content), name=body.name)
    content = body.refusal if body.content is None else body.content
    if content is None and not body.tool_calls:
        raise InvalidRequestError(
            "Invalid value for 'content': expected a string, got null.",
            param=f"messages[{i}].content",
            code="invalid_type",
        )
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in body.tool_calls or ()
    )
    return Message(role="assistant", content=_parts(content), name=body.name, tool_calls=calls)


def _parts(content: Any) -> tuple[TextPart, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(TextPart(part.text if isinstance(part, TextPartBody) else part.refusal) for part in content)


def _check_calls(bodies: Sequence[MessageBody]) -> None:
    """Each call is answered once, right after its turn, before anything else is said."""
    open_ids: list[str] = []
    in_exchange = False
    for i, body in enumerate(bodies):
        if isinstance(body, ToolBody):
            if not in_exchange:
                raise _history_error(
                    i,
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
                    "'tool_calls'.",
                )
            if body.tool_call_id not in open_ids:
                raise InvalidRequestError(
                    "Invalid parameter: 'tool_call_id' of a message with role 'tool' must name one of the "
                    "'tool_calls' of the assistant message before it that has no response yet.",
                    param=f"messages.[{i}].tool_call_id",
                )
            open_ids.remove(body.tool_call_id)
            continue
        if open_ids:
            raise _unanswered(i, open_ids)
        in_exchange = isinstance(body, AssistantBody) and bool(body.tool_calls)
        open_ids = _call_ids(i, body)
    if open_ids:
        raise _unanswered(len(bodies), open_ids)


def _call_ids(i: int, body: MessageBody) -> list[str]:
    if not isinstance(body, AssistantBody):
        return []
    ids = [call.id for call in body.tool_calls or ()]
    if len(set(ids)) < len(ids):
        raise InvalidRequestError(
            "Invalid value for 'tool_calls': two calls have the same 'id'.", param=f"messages.[{i}].tool_calls"
        )
    return ids


def _history_error(i: int, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=f"messages.[{i}].role")


def _unanswered(i: int, ids: list[str]) -> InvalidRequestError:
    names = shown(", ".join(ids), 256)
    return _history_error(
        i,
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
        f"The following tool_call_ids did not have response messages: {names}",
    )
