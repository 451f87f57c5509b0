"""The Sampler protocol: the one face a model shows to whoever scores or uses it.

`generate.LLM` implements it in process, `evals.client.HTTPSampler` over any OpenAI-compatible URL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from smelt.core.messages import Message, ResponseFormat, Tool, ToolChoice
from smelt.core.sampling import FinishReason, SamplingParams, Usage


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One question to a model."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    params: SamplingParams = SamplingParams()


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """One complete answer."""

    message: Message
    finish_reason: FinishReason
    usage: Usage


class Sampler(Protocol):
    """Anything that answers chat requests."""

    @property
    def name(self) -> str:
        """The model's name, for result rows."""
        ...

    def chat(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request; raises UserError for a bad one and EngineError for a failed one."""
        ...
