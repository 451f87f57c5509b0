"""From rows of a StepResult to the log-probabilities a request asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smelt.core.sampling import TokenLogprob

if TYPE_CHECKING:
    from smelt.core.step import F32, I32, StepResult
    from smelt.engine.scheduler import Chunk


def drawn_logprob(token_id: int, result: StepResult, s: int) -> TokenLogprob:
    """The drawn token of sequence `s` with its alternatives."""
    return TokenLogprob(token_id, float(result.logprobs[s]), _top(result.top_ids[s], result.top_logprobs[s]))


def collect_prompt_logprobs(chunk: Chunk, result: StepResult, first_row: int) -> None:
    """Append what a scored chunk says of its sequence's prompt; `first_row` is the chunk's first row in scored_*.

    Rows about tokens that are known already (computed again after a preemption) and the row after the last prompt
    token are passed over.
    """
    sequence = chunk.sequence
    known = sequence.prompt_logprobs
    if known is None:
        return
    first_scored = len(known)  # the row of token t tells of token t + 1
    for position in range(max(first_scored, sequence.num_computed + 1), sequence.num_computed + chunk.num_tokens + 1):
        if position < sequence.prompt_len:
            row = first_row + position - 1 - sequence.num_computed
            top = _top(result.scored_top_ids[row], result.scored_top_logprobs[row])
            known.append(TokenLogprob(sequence.token_ids[position], float(result.scored_logprobs[row]), top))


def _top(ids: I32, logprobs: F32) -> tuple[tuple[int, float], ...]:
    return tuple((i, p) for i, p in zip(ids.tolist(), logprobs.tolist(), strict=True) if i >= 0)
