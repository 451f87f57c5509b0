"""An answer's events as OpenAI's chat completion: whole, or chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from secrets import token_urlsafe
from typing import Any

from smelt.core.errors import EngineError
from smelt.generate.completion import Event
from smelt.generate.events import AnswerArguments, AnswerCall, AnswerEnd, AnswerText, AnswerUsage, TokenReport
from smelt.server.chat_request import ChatBody
from smelt.server.replies import logprob_entries, usage_body
from smelt.server.service import Events, ServedModel
from smelt.server.streaming import event
from smelt.store.ids import timed_id

_CHUNK_WIDTH = 384  # bytes an obfuscated chunk is padded to a multiple of


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    reports: list[TokenReport] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    finish_reason: str = ""


class Gathered:
    """The events of one answer, collected until they make a completion object."""

    def __init__(self, reply: ChatReply) -> None:
        self._reply = reply
        self._choices = [_Choice() for _ in range(reply.num_choices)]
        self._usage: dict[str, Any] | None = None

    def add(self, part: Event) -> None:
        """Take in the next event."""
        if isinstance(part, AnswerText):
            self._choices[part.choice].text.append(part.text)
            self._choices[part.choice].reports.extend(part.reports)
        elif isinstance(part, AnswerCall):
            self._choices[part.choice].calls.append(_Call(part.id, part.name))
        elif isinstance(part, AnswerArguments):
            self._choices[part.choice].calls[part.call].arguments.append(part.text)
        elif isinstance(part, AnswerEnd):
            self._choices[part.choice].finish_reason = part.reason.value
        elif isinstance(part, AnswerUsage):
            self._usage = usage_body(part.usage)

    def completion(self) -> dict[str, Any]:
        """The completion object. Raises EngineError when the answer is not complete."""
        if self._usage is None or not all(choice.finish_reason for choice in self._choices):
            raise EngineError("an answer ended without saying why")
        body = self._reply.body
        return {
            "object": "chat.completion",
            **self._reply.fields,
            "choices": [self._choice(i, choice) for i, choice in enumerate(self._choices)],
            "usage": self._usage,
            **({} if body.metadata is None else {"metadata": body.metadata}),
        }

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if choice.calls and not text else text,
            "refusal": None,
            "annotations": [],
        }
        if choice.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for call in choice.calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": self._reply.logprobs(choice.reports),
            "finish_reason": choice.finish_reason,
        }


class ChatReply:
    """One reply: the ids and fields that all its parts share."""

    def __init__(self, body: ChatBody, model: ServedModel) -> None:
        self.body = body
        self.num_choices = body.n or 1
        self.with_logprobs = bool(body.logprobs)
        self.created_ns = time.time_ns()
        self.fields = {
            "id": timed_id("chatcmpl", self.created_ns),
            "created": self.created_ns // 10**9,
            "model": body.model,
            "service_tier": "default",
            "system_fingerprint": model.fingerprint,
        }

    async def whole(self, events: Events) -> dict[str, Any]:
        """The completion object, once the answer is complete."""
        answer = self.gather()
        async for part in events:
            answer.add(part)
        return answer.completion()

    def gather(self) -> Gathered:
        """An empty answer, to be filled with its events."""
        return Gathered(self)

    def logprobs(self, reports: list[TokenReport] | tuple[TokenReport, ...]) -> dict[str, Any] | None:
        """A choice's `logprobs`; None unless they were asked for."""
        return {"content": logprob_entries(reports), "refusal": None} if self.with_logprobs else None

    async def chunks(self, events: Events) -> AsyncGenerator[bytes, None]:
        """The same as server-sent events. The role comes with each choice's first chunk."""
        opened: set[int] = set()
        async with aclosing(events):
            async for part in events:
                if isinstance(part, AnswerUsage) and self.body.include_usage:
                    yield self._chunk([], usage_body(part.usage))
                if isinstance(part, AnswerText | AnswerCall | AnswerArguments | AnswerEnd):
                    is_first = part.choice not in opened
                    opened.add(part.choice)
                    if is_first:
                        yield self._opening(part)
                    if not (is_first and isinstance(part, AnswerCall)) and (chunk := self._delta(part)):
                        yield chunk

    def _opening(self, part: AnswerText | AnswerCall | AnswerArguments | AnswerEnd) -> bytes:
        is_call = isinstance(part, AnswerCall)
        delta: dict[str, Any] = {"role": "assistant", "content": None if is_call else "", "refusal": None}
        if isinstance(part, AnswerCall):
            delta["tool_calls"] = [_call_delta(part)]
        return self._chunk([self._choice_delta(part.choice, delta)])

    def _delta(self, part: AnswerText | AnswerCall | AnswerArguments | AnswerEnd) -> bytes | None:
        if isinstance(part, AnswerText):
            if not part.text and not part.reports:
                return None
            choice = self._choice_delta(part.choice, {"content": part.text})
            choice["logprobs"] = self.logprobs(part.reports)
        elif isinstance(part, AnswerCall):
            choice = self._choice_delta(part.choice, {"tool_calls": [_call_delta(part)]})
        elif isinstance(part, AnswerArguments):
            call = {"index": part.call, "function": {"arguments": part.text}}
            choice = self._choice_delta(part.choice, {"tool_calls": [call]})
        else:
            choice = self._choice_delta(part.choice, {})
            choice["finish_reason"] = part.reason.value
        return self._chunk([choice])

    def _choice_delta(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        data = {"object": "chat.completion.chunk", **self.fields, "choices": choices}
        if self.body.include_usage:
            data["usage"] = usage
        return padded(data) if self.body.include_obfuscation else event(data)


def padded(data: dict[str, Any]) -> bytes:
    """The event with an `obfuscation` field that makes its length a multiple of `_CHUNK_WIDTH` bytes."""
    missing = -len(event({**data, "obfuscation": ""})) % _CHUNK_WIDTH
    return event({**data, "obfuscation": token_urlsafe(_CHUNK_WIDTH)[:missing]})


def _call_delta(part: AnswerCall) -> dict[str, Any]:
    function = {"name": part.name, "arguments": ""}
    return {"index": part.call, "id": part.id, "type": "function", "function": function}
