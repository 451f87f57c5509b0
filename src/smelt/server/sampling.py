"""The sampling fields that chat and completion requests share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from smelt.core.errors import InvalidRequestError
from smelt.core.sampling import SamplingParams
from smelt.server.errors import shown
from smelt.server.settings import Settings
from smelt.server.validation import ARRAY, STRING, Body, above_maximum, by_kind

MAX_BIASED_TOKENS = 1024
MAX_STOP_LEN = 4096  # characters; the longest stop string is text held back from a stream
_CANONICAL_ID = re.compile(r"0|[1-9][0-9]{0,9}")

Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LEN)]
Stop = Annotated[
    Annotated[StopString, STRING] | Annotated[Annotated[list[StopString], Field(min_length=1, max_length=4)], ARRAY],
    by_kind("a string or an array of strings"),
]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]


class StreamOptions(Body):
    """What a stream carries beside its deltas."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingBody(Body):
    """Fields with one meaning on both endpoints. null is the default."""

    model: str
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASED_TOKENS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def include_obfuscation(self) -> bool:
        """Whether chunks are padded."""
        return bool(self.stream_options and self.stream_options.include_obfuscation)

    def check(self, settings: Settings) -> None:
        """What one field's type cannot say. Raises InvalidRequestError."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
            )
        if (self.n or 1) > settings.max_n:
            raise above_maximum("n", settings.max_n, self.n or 1)

    def params(self, *, max_tokens: int | None, top_logprobs: int | None) -> SamplingParams:
        """These fields as core's parameters."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=_token_ids(self.logit_bias or {}),
            seed=self.seed,
            stop=stop,
            max_tokens=max_tokens,
            top_logprobs=top_logprobs,
        )


def _token_ids(bias: dict[str, float]) -> dict[int, float]:
    for key in bias:
        if not _CANONICAL_ID.fullmatch(key):
            raise InvalidRequestError(
                f"Invalid key in 'logit_bias': {shown(key)}. You should only be submitting token IDs.",
                param="logit_bias",
                code="invalid_value",
            )
    return {int(key): value for key, value in bias.items()}
