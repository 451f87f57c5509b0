"""Where `smelt chat` and `smelt run` get answers: a folder loaded here, or any OpenAI-compatible URL."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from smelt.core.errors import EngineError, InvalidRequestError
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import FinishReason, Usage
from smelt.generate.completion import Event, PromptText
from smelt.generate.events import AnswerEnd, AnswerEvent, AnswerText, AnswerUsage

if TYPE_CHECKING:
    from smelt.generate.llm import LLM

URL_TIMEOUT_S = 600.0


class Source(Protocol):
    """Anything that streams one answer."""

    def stream(self, request: ChatRequest) -> Iterator[AnswerEvent]:
        """Text, the end and the usage of one answer. Raises UserError or EngineError."""
        ...


def open_source(model: str, url: str) -> Source:
    """A URL when one is given, else the model loaded in this process."""
    if url:
        return UrlSource(url, model)
    from smelt.cli.load import load_llm

    return LocalSource(load_llm(model))


class LocalSource:
    """A model in this process."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def stream(self, request: ChatRequest) -> Iterator[AnswerEvent]:
        """Events as the engine makes them; leaving the iterator aborts the answer."""
        events = self._llm.stream(self._llm.prepare(request))

        async def next_event() -> Event | None:
            return await anext(events, None)

        with asyncio.Runner() as runner:
            try:
                while (event := runner.run(next_event())) is not None:
                    if not isinstance(event, PromptText):
                        yield event
            finally:
                runner.run(events.aclose())


class UrlSource:
    """A server somewhere, over chat completions with streaming. The key comes from OPENAI_API_KEY."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model

    def stream(self, request: ChatRequest) -> Iterator[AnswerEvent]:
        """Events as the server sends them. Raises InvalidRequestError with the server's words."""
        import httpx

        headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
        try:
            with httpx.stream(
                "POST", self._url, json=self._body(request), headers=headers, timeout=URL_TIMEOUT_S
            ) as reply:
                if reply.status_code != httpx.codes.OK:
                    raise InvalidRequestError(_error_text(reply.status_code, reply.read()))
                for line in reply.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield from _events(json.loads(line[6:]))
        except httpx.TransportError as error:
            raise EngineError(f"no answer from {self._url}: {error}") from error

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.text} for message in request.messages],
            "temperature": request.params.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.params.max_tokens is not None:
            body["max_completion_tokens"] = request.params.max_tokens
        if request.response_format.kind == "json_schema":
            schema = {"name": request.response_format.name, "schema": request.response_format.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


def _error_text(status: int, body: bytes) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {body[:200]!r}"


def _events(chunk: dict[str, Any]) -> Iterator[AnswerEvent]:
    if "error" in chunk:
        raise EngineError(str(chunk["error"].get("message", chunk["error"])))
    for choice in chunk.get("choices", []):
        if text := choice.get("delta", {}).get("content"):
            yield AnswerText(choice=choice.get("index", 0), text=text)
        if reason := choice.get("finish_reason"):
            yield AnswerEnd(choice=choice.get("index", 0), reason=FinishReason(reason))
    if usage := chunk.get("usage"):
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        yield AnswerUsage(Usage(usage["prompt_tokens"], usage["completion_tokens"], cached))
