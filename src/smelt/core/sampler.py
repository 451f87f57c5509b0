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


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """How likely is `text` after `context`? Raw text, no chat format; `text` is not empty."""

    text: str
    context: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextScore:
    """Natural-log probabilities of a text's tokens under the model's own distribution (no temperature, no mask).

    logprobs: one per token of the text that something precedes (context, or the model's begin or end id).
    num_bytes: UTF-8 bytes those tokens stand for; all of the text's, but for a first token that nothing precedes.
    """

    logprobs: tuple[float, ...]
    num_bytes: int
    usage: Usage

    @property
    def nats(self) -> float:
        """The text's code length under the model, in nats."""
        return -sum(self.logprobs)


class Sampler(Protocol):
    """Anything that answers chat requests and scores texts."""

    @property
    def name(self) -> str:
        """The model's name, for result rows."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the model's answers may change; results are kept under it."""
        ...

    def chat(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request; raises UserError for a bad one and EngineError for a failed one."""
        ...

    def score(self, request: ScoreRequest) -> TextScore:
        """Score one text; raises UserError where it does not fit or cannot be scored, EngineError on failure."""
        ...
