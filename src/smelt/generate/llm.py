"""The text-level model: a folder on disk becomes something that answers chat requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smelt.chat.renderer import Renderer
from smelt.core.sampler import ChatAnswer, ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.generate.completion import PromptText
from smelt.generate.events import AnswerEvent
from smelt.generate.options import LLMOptions
from smelt.generate.prepare import Prepared, TokenCount

if TYPE_CHECKING:
    from smelt.tokenizer import Tokenizer


@dataclass(kw_only=True)
class LLM:
    """A loaded model. Make one with `LLM.load`, end it with `close`. Every method may be called from any thread.

    name: the folder's name unless the options gave one. context_len, max_output_len: limits in tokens, enforced.
    renderer: None for a base model, which only completes. fingerprint: `system_fingerprint`, changes with weights
    and settings. created: seconds since 1970, when the folder was written.
    """

    name: str
    context_len: int
    max_output_len: int
    tokenizer: Tokenizer
    renderer: Renderer | None
    fingerprint: str
    created: int
    options: LLMOptions

    @classmethod
    def load(cls, folder: Path | str, *, options: LLMOptions = LLMOptions()) -> LLM:  # noqa: B008 - frozen value
        """Load a folder (config.json, safetensors, tokenizer.json). Raises CheckpointError. Imports no torch."""
        raise NotImplementedError

    def prepare(self, request: ChatRequest) -> Prepared:
        """Render, count, check and compile a chat request. CPU-bound, milliseconds: call it from a thread.

        Raises InvalidRequestError (a value, a schema that cannot be honoured, a base model) and ContextLengthError.
        """
        raise NotImplementedError

    def prepare_completion(
        self, prompt: str | Sequence[int], params: SamplingParams, *, echo: bool = False
    ) -> Prepared:
        """Check a raw completion. `prompt` is text or token ids; control ids are refused in ids.

        With `echo` the first event is a PromptText, with log-probabilities where params.top_logprobs is set, and
        max_tokens may be 0. Raises InvalidRequestError and ContextLengthError.
        """
        raise NotImplementedError

    def stream(self, prepared: Prepared, *, n: int = 1, tenant: str = "") -> AsyncIterator[AnswerEvent | PromptText]:
        """The answer as it is made: an async generator. Events of the n choices interleave; AnswerUsage is last.

        Nothing is submitted before the first `__anext__`, which raises OverloadedError when the queue is full:
        await one event before sending response headers. Closing the generator (`aclose`, cancellation) aborts the
        work in the engine at once. Raises EngineError when the engine fails.
        """
        raise NotImplementedError

    def chat(self, request: ChatRequest) -> ChatAnswer:
        """One complete answer, synchronously (core.sampler.Sampler)."""
        raise NotImplementedError

    def count(self, request: ChatRequest) -> TokenCount:
        """Prompt tokens the request would take. No limit is checked."""
        raise NotImplementedError

    def stats(self) -> Mapping[str, float]:
        """Gauges and counters of the engine, for /metrics: running, waiting, blocks used and free, tokens so far."""
        raise NotImplementedError

    def close(self) -> None:
        """End the engine's thread; running requests end in EngineError."""
