"""A model that answers from a script, for tests of what surrounds it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from smelt.core.sampler import ChatRequest
from smelt.core.sampling import FinishReason, SamplingParams, Usage
from smelt.generate.completion import PromptText
from smelt.generate.events import AnswerEnd, AnswerEvent, AnswerText, AnswerUsage

Script = Sequence[AnswerEvent | PromptText | Exception]
HELLO: Script = (
    AnswerText(0, "Hello"),
    AnswerText(0, " there"),
    AnswerEnd(0, FinishReason.STOP),
    AnswerUsage(Usage(prompt_tokens=9, completion_tokens=2, cached_tokens=4)),
)


class Letters:
    """A vocabulary in which every token is one byte."""

    vocab_size = 256
    control_ids: Mapping[str, int] = {}

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


class FakeLLM:
    """Plays `script` for every request; an exception in it is raised there.

    `pause` holds the answer after its first event until it is set. `requests` are the prepared requests seen,
    `num_open` the streams begun and not yet closed.
    """

    name = "fake"
    context_len = 1000
    max_output_len = 500
    tokenizer = Letters()
    created = 1_700_000_000
    can_chat = True
    fingerprint = "fp_fake"

    def __init__(self, script: Script = HELLO) -> None:
        self.script = script
        self.pause: asyncio.Event | None = None
        self.requests: list[ChatRequest] = []
        self.prompts: list[tuple[str | list[int], SamplingParams, bool]] = []
        self.num_open = 0
        self.n = 0
        self.tenants: list[str] = []
        self.fail: Exception | None = None

    def prepare(self, request: ChatRequest) -> Any:
        self.requests.append(request)
        if self.fail:
            raise self.fail
        return SimpleNamespace()

    def prepare_completion(self, prompt: str | list[int], params: SamplingParams, *, echo: bool = False) -> Any:
        self.prompts.append((prompt, params, echo))
        return SimpleNamespace()

    async def stream(
        self, prepared: Any, *, n: int = 1, tenant: str = ""
    ) -> AsyncGenerator[AnswerEvent | PromptText, None]:
        self.n = n
        self.tenants.append(tenant)
        self.num_open += 1
        try:
            for i, event in enumerate(self._for_choices(n)):
                if i == 1 and self.pause:
                    await self.pause.wait()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.num_open -= 1

    def _for_choices(self, n: int) -> Script:
        """A script for one choice is played for each of several."""
        told = [event for event in self.script if not isinstance(event, AnswerUsage | Exception)]
        if any(event.choice for event in told):
            return self.script
        more = [dataclasses.replace(event, choice=choice) for choice in range(1, n) for event in told]
        return [*more, *self.script]

    def stats(self) -> Mapping[str, float]:
        keys = (
            "num_running num_waiting num_blocks num_blocks_used cached_tokens prompt_tokens generated_tokens "
            "num_preemptions num_steps num_failed_steps num_cached_grammars"
        )
        return dict.fromkeys(keys.split(), 4.0) | {"num_blocks": 16.0, "prompt_tokens": 8.0}
