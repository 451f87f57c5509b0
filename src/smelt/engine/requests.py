"""What goes into the engine and what comes out. Token ids only; text lives at the edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from smelt.core.sampling import FinishReason, SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from smelt.core.step import U32


class TokenMatcher(Protocol):
    """The grammar port: constrains one answer. Implemented over llguidance in `generate.grammar`.

    Called on the engine's thread only. Any exception ends this request with reason ERROR and no other.
    """

    def fill_mask(self, row: U32) -> None:
        """Set the bits of the tokens allowed next; `row` has ceil(V/32) words and arrives zeroed."""
        ...

    def advance(self, token_id: int) -> None:
        """The token joined the answer, drawn or forced; a stop id is not fed.

        Raises EngineError when the grammar does not allow it.
        """
        ...

    def forced_tokens(self) -> list[int]:
        """Tokens the grammar forces next, in order, without moving: the engine calls `advance` for each it appends.

        Must be exactly the tokens that masks would have left as the only choice: an answer is the same whether
        the engine uses them or draws under masks (it draws where log-probabilities are asked for).
        """
        ...


@dataclass(kw_only=True, slots=True)
class EngineRequest:
    """One answer to compute.

    prompt_ids: at least one token. privileges: one byte per prompt token (part of the cache key). stop_ids end
    the answer with reason STOP and are not reported. max_new_tokens >= 0 (0: only score the prompt). seed is already
    concrete. `params.stop`, `params.max_tokens` are the caller's business and ignored here.
    score_prompt: report the log-probability of every prompt token (turns the prefix cache off for it).
    tenant, adapter, media (content hashes): parts of the cache key only; a StepBatch does not carry them.
    """

    id: str
    prompt_ids: Sequence[int]
    privileges: bytes
    params: SamplingParams
    seed: int
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    matcher: TokenMatcher | None = None
    score_prompt: bool = False
    tenant: str = ""
    adapter: str = ""
    media: Sequence[bytes] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class PromptScored:
    """Sent once, before any token, when score_prompt: one entry per prompt token, None for the first."""

    request_id: str
    logprobs: tuple[TokenLogprob | None, ...]


@dataclass(frozen=True, slots=True)
class TokenDrawn:
    """One more token of the answer. `logprob` only where the request asked for logprobs."""

    request_id: str
    token_id: int
    logprob: TokenLogprob | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The one terminal event of every admitted request.

    cached_len: prompt tokens found in the prefix cache on first admission. `error` is set with reason ERROR.
    """

    request_id: str
    reason: FinishReason
    cached_len: int = 0
    error: str | None = None


EngineEvent = PromptScored | TokenDrawn | Ended
