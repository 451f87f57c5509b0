"""Answers to raw prompts as OpenAI's text completion: whole, or chunk by chunk.

Choice numbers run over all prompts: prompt p's choice c is number p * n + c.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from smelt.core.errors import EngineError
from smelt.core.sampling import Usage
from smelt.generate.completion import LogprobLists, PromptText
from smelt.generate.events import AnswerEnd, AnswerText, AnswerUsage
from smelt.server.chat_reply import padded
from smelt.server.completions_request import CompletionBody
from smelt.server.replies import finite, new_id, usage_body
from smelt.server.service import Events, ServedModel
from smelt.server.streaming import event


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    lists: LogprobLists = field(default_factory=LogprobLists)
    finish_reason: str = ""
    num_sent: int = 0  # entries of `lists` that a chunk already carried


class CompletionReply:
    """One reply to one or more prompts."""

    def __init__(self, body: CompletionBody, model: ServedModel) -> None:
        self.body = body
        self.with_logprobs = body.logprobs is not None
        self.choices = [_Choice() for _ in range((body.n or 1) * len(body.prompts))]
        self.fields = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": model.fingerprint,
        }

    async def whole(self, events: Events) -> dict[str, Any]:
        """The completion object, once every choice is complete."""
        usage = None
        async for part in events:
            self._note(part)
            if isinstance(part, AnswerUsage):
                usage = part.usage
        if usage is None or not all(choice.finish_reason for choice in self.choices):
            raise EngineError("an answer ended without saying why")
        choices = [self._choice(i, "".join(choice.text), choice.finish_reason) for i, choice in enumerate(self.choices)]
        return {**self.fields, "choices": choices, "usage": usage_body(usage)}

    async def chunks(self, events: Events) -> AsyncGenerator[bytes, None]:
        """The same as server-sent events."""
        async with aclosing(events):
            async for part in events:
                text = self._note(part)
                if isinstance(part, AnswerUsage):
                    if self.body.include_usage:
                        yield self._chunk([], part.usage)
                elif isinstance(part, AnswerEnd):
                    yield self._chunk([self._choice(part.choice, "", part.reason.value)])
                elif isinstance(part, PromptText | AnswerText):
                    yield self._chunk([self._choice(part.choice, text, None)])

    def _note(self, part: object) -> str:
        if isinstance(part, PromptText | AnswerText):
            choice = self.choices[part.choice]
            choice.text.append(part.text)
            if self.with_logprobs:
                choice.lists.add(part.tokens if isinstance(part, PromptText) else part.reports)
            return part.text
        if isinstance(part, AnswerEnd):
            self.choices[part.choice].finish_reason = part.reason.value
        return ""

    def _choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(self.choices[index]) if self.with_logprobs else None
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, choice: _Choice) -> dict[str, Any]:
        """The four lists, from the first entry not sent yet."""
        lists, first = choice.lists, choice.num_sent
        choice.num_sent = len(lists.tokens)
        return {
            "tokens": lists.tokens[first:],
            "token_logprobs": [None if value is None else finite(value) for value in lists.token_logprobs[first:]],
            "top_logprobs": [
                None if top is None else {name: finite(value) for name, value in top.items()}
                for top in lists.top_logprobs[first:]
            ],
            "text_offset": lists.text_offset[first:],
        }

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        data = {**self.fields, "choices": choices}
        if self.body.include_usage:
            data["usage"] = usage_body(usage) if usage else None
        return padded(data) if self.body.include_obfuscation else event(data)
