"""Drawing tokens in numpy: the slow twin of the native sampler, and what TorchRunner draws with.

Shapes: S sequences, V vocabulary, K alternatives, R scored rows (see core.step for the meaning of each field).

Arithmetic, so that a fast twin can agree: bias and penalties are added in float32, in the order bias, presence,
frequency, and candidates are ordered by these adjusted float32 logits (ties by rising id). Softmax, log-softmax and
cumulative sums are float64. A twin that sums in float32 draws the same token unless u falls within rounding of a
boundary between two tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from smelt.core.errors import EngineError
from smelt.core.sampling import counter_uniform
from smelt.core.step import StepResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smelt.core.step import F32, I32, U32, StepBatch

    F64 = NDArray[np.float64]
    Bool = NDArray[np.bool_]


def sample_step(logits_SV: F32, scored_logits_RV: F32, batch: StepBatch) -> StepResult:  # noqa: N803
    """The whole StepResult of a batch: logits after each sequence's last token, and of every scored token."""
    width = alternatives_width(batch)
    token_ids, logprobs, top_ids, top_logprobs = sample_batch(logits_SV, batch)
    scored = np.repeat(batch.score != 0, np.diff(batch.starts))
    top_k_R = np.repeat(batch.top_k, np.diff(batch.starts))[scored]  # noqa: N806
    rows = score_rows(scored_logits_RV, batch.next_ids[scored], top_k_R, width=width)
    return StepResult(
        token_ids=token_ids,
        logprobs=logprobs,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        scored_logprobs=rows[0],
        scored_top_ids=rows[1],
        scored_top_logprobs=rows[2],
    )


def sample_batch(logits_SV: F32, batch: StepBatch) -> tuple[I32, F32, I32, F32]:  # noqa: N803
    """Draw one token for every sequence with sample[s] = 1; rows of the others are not read.

    Returns (token_ids [S], logprobs [S], top_ids [S, K], top_logprobs [S, K]) as StepResult defines them.
    Raises EngineError when a row is not a distribution (NaN, +inf, all -inf) or its mask allows no token.
    """
    num_sequences, width = batch.num_sequences, alternatives_width(batch)
    token_ids = np.full(num_sequences, -1, np.int32)
    logprobs = np.full(num_sequences, np.nan, np.float32)
    top_ids = np.full((num_sequences, width), -1, np.int32)
    top_logprobs = np.full((num_sequences, width), np.nan, np.float32)
    for s in np.flatnonzero(batch.sample):
        own = np.asarray(logits_SV[s], np.float32)
        _check_finite(own)
        token = _draw(_adjust(own, batch, int(s)), batch, int(s))
        token_ids[s] = token
        if (k := int(batch.top_k[s])) >= 0:
            own_logprobs = log_softmax(own)
            logprobs[s] = own_logprobs[token]
            _fill_top(own, own_logprobs, k, top_ids[s], top_logprobs[s])
    return token_ids, logprobs, top_ids, top_logprobs


def score_rows(
    logits_RV: F32,  # noqa: N803
    next_ids: I32,
    top_k: int | I32,
    *,
    width: int | None = None,
) -> tuple[F32, I32, F32]:
    """Log-probability of each row's known successor, and the best alternatives at that place.

    logits_RV: [R, V]. next_ids: [R], -1 gives NaN. top_k: for all rows or per row [R]; below 0 reports none.
    width: K of the batch, by default the largest top_k. Returns (logprobs [R], top_ids [R, K], top_logprobs [R, K]).
    """
    num_rows = len(next_ids)
    top_k_R = np.broadcast_to(np.asarray(top_k, np.int32), (num_rows,))  # noqa: N806
    if width is None:
        width = max(int(top_k_R.max(initial=0)), 0)
    logprobs = np.full(num_rows, np.nan, np.float32)
    top_ids = np.full((num_rows, width), -1, np.int32)
    top_logprobs = np.full((num_rows, width), np.nan, np.float32)
    for r in range(num_rows):
        own = np.asarray(logits_RV[r], np.float32)
        _check_finite(own)
        own_logprobs = log_softmax(own)
        if next_ids[r] >= 0:
            logprobs[r] = own_logprobs[next_ids[r]]
        _fill_top(own, own_logprobs, int(top_k_R[r]), top_ids[r], top_logprobs[r])
    return logprobs, top_ids, top_logprobs


def alternatives_width(batch: StepBatch) -> int:
    """K of a batch: the largest top_k, 0 if none asks for alternatives."""
    return max(int(batch.top_k.max(initial=0)), 0)


def allowed_tokens(mask: U32, vocab_size: int) -> Bool:
    """A bit mask row as booleans [V]; bit t%32 of word t//32 is token t."""
    return np.unpackbits(mask.astype("<u4").view(np.uint8), bitorder="little")[:vocab_size].astype(np.bool_)


def log_softmax(logits: F32) -> F64:
    """Natural-log probabilities in float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - np.log(np.exp(shifted).sum())  # type: ignore[no-any-return]


def _adjust(own: F32, batch: StepBatch, s: int) -> F32:
    """Logits after bias, penalties and mask; a new array."""
    logits = own.copy()
    bias = slice(batch.bias_starts[s], batch.bias_starts[s + 1])
    logits[batch.bias_ids[bias]] += batch.bias_values[bias]
    count = slice(batch.count_starts[s], batch.count_starts[s + 1])
    seen, counts = batch.count_ids[count], batch.counts[count].astype(np.float32)
    logits[seen] -= batch.presence_penalties[s] * (counts > 0)
    logits[seen] -= batch.frequency_penalties[s] * counts
    if (row := int(batch.mask_rows[s])) >= 0:
        allowed = allowed_tokens(batch.masks[row], len(logits))
        if not allowed.any():
            raise EngineError("a grammar mask allows no token; it must allow at least one")
        logits[~allowed] = -np.inf
    return logits


def _draw(logits: F32, batch: StepBatch, s: int) -> int:
    temperature = float(batch.temperatures[s])
    if temperature <= 0.0:
        return int(np.argmax(logits))  # numpy returns the first of equals: the lowest id
    order = np.argsort(-logits, kind="stable")
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, which is right
        scaled = (logits[order].astype(np.float64) - float(logits[order[0]])) / temperature
    cumulative = np.cumsum(np.exp(scaled))
    num_kept = len(cumulative)
    if (top_p := float(batch.top_ps[s])) < 1.0:
        num_kept = min(int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1, num_kept)
    kept = cumulative[:num_kept]
    u = counter_uniform(int(batch.seeds[s]), int(batch.draws[s]))
    picked = int(np.searchsorted(kept, u * kept[-1], side="right"))
    if picked == num_kept:  # u * sum rounded up to the sum: the last token that has any probability
        picked = int(np.searchsorted(kept, kept[-1], side="left"))
    return int(order[picked])


def _fill_top(logits: F32, logprobs: F64, k: int, ids_out: I32, logprobs_out: F32) -> None:
    """The k most probable tokens, best first, ties by rising id, without sorting the whole vocabulary."""
    k = min(k, len(logits))
    if k <= 0:
        return
    threshold = np.partition(logits, len(logits) - k)[len(logits) - k]
    candidates = np.flatnonzero(logits >= threshold)
    best = candidates[np.argsort(-logits[candidates], kind="stable")[:k]]
    ids_out[:k] = best
    logprobs_out[:k] = logprobs[best]


def _check_finite(logits: F32) -> None:
    if not np.isfinite(logits.max()):  # NaN and +inf propagate through max; all -inf shows too
        raise EngineError("the model's logits are not finite; found NaN or infinity")
