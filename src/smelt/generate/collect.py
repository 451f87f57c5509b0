"""All events of an answer, put together."""

from __future__ import annotations

from collections.abc import Iterable

from smelt.core.messages import Message, TextPart, ToolCall
from smelt.core.sampler import ChatAnswer
from smelt.core.sampling import FinishReason, Usage
from smelt.generate.completion import PromptText
from smelt.generate.events import AnswerArguments, AnswerCall, AnswerEnd, AnswerEvent, AnswerText, AnswerUsage


def collect(events: Iterable[AnswerEvent | PromptText]) -> ChatAnswer:
    """The first choice of a complete event sequence as one answer."""
    text: list[str] = []
    calls: list[ToolCall] = []
    arguments: list[list[str]] = []
    reason, usage = FinishReason.STOP, Usage(0, 0)
    for event in events:
        if isinstance(event, AnswerUsage):
            usage = event.usage
        elif event.choice != 0:
            continue
        elif isinstance(event, AnswerText):
            text.append(event.text)
        elif isinstance(event, AnswerCall):
            calls.append(ToolCall(event.id, event.name, ""))
            arguments.append([])
        elif isinstance(event, AnswerArguments):
            arguments[event.call].append(event.text)
        elif isinstance(event, AnswerEnd):
            reason = event.reason
    content = "".join(text)
    message = Message(
        role="assistant",
        content=(TextPart(content),) if content else (),
        tool_calls=tuple(
            ToolCall(call.id, call.name, "".join(pieces)) for call, pieces in zip(calls, arguments, strict=True)
        ),
    )
    return ChatAnswer(message=message, finish_reason=reason, usage=usage)
