"""How tokens are drawn, and what is reported of the drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why an answer ended. `ABORT` never reaches a client: it is what a disconnected one would have got."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Policy for drawing tokens; ranges are OpenAI's and are checked where requests are parsed.

    temperature: 0..2, 0 is greedy. top_p: 0..1. penalties: -2..2, over the tokens generated so far
    (logit -= presence * (count > 0) + frequency * count). logit_bias: token id -> -100..100, added before
    everything else. seed: any 64-bit integer; the same seed and prompt give the same answer whatever else is
    in the batch; None draws one from the operating system. top_logprobs: how many alternatives to
    report (0..20), None reports nothing; values are of the model's own distribution, before penalties,
    bias, mask and temperature. max_tokens: output limit, None for what the context and the model allow.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer (all choices together)."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of one token and its best alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


_MASK64 = (1 << 64) - 1


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def counter_uniform(seed: int, draw: int) -> float:
    """The uniform number in [0, 1) of draw number `draw` of an answer with `seed` (both 64-bit, unsigned).

    Depends on nothing else, so an answer does not change with its batch mates. Splitmix64 (Steele, Lea,
    Flood 2014) of seed and counter, top 53 bits. The native core computes the same bits.
    """
    return (_splitmix64(_splitmix64(seed & _MASK64) ^ (draw & _MASK64)) >> 11) * 2.0**-53
