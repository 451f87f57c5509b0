"""One step of a model over a flat batch: the contract between the engine and every runner.

Shapes: T tokens in the batch, S sequences, B blocks per table (padded), V vocabulary, K top_logprobs.
All arrays are C-contiguous numpy arrays; runners never keep or change them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    F32 = NDArray[np.float32]
    I32 = NDArray[np.int32]
    I64 = NDArray[np.int64]
    U8 = NDArray[np.uint8]
    U32 = NDArray[np.uint32]
    U64 = NDArray[np.uint64]


@dataclass(kw_only=True, slots=True)
class StepBatch:
    """The tokens to compute now and how to sample after them.

    A sequence's new tokens are `token_ids[starts[s]:starts[s+1]]`, at consecutive positions from
    `first_positions[s]`; its keys and values for position p live in block `block_tables[s, p // block_size]`,
    row `p % block_size`. Every earlier position has been computed by an earlier step.

    sample[s] = 1: draw a token from the logits after the sequence's last new token. Then, in this order:
    bias (`bias_*`, CSR by sequence), penalties over generated tokens (`count_*`, CSR), bit mask
    (`masks`, bit t%32 of word t//32 is 1 when token t is allowed; row `mask_rows[s]`, -1 for no mask),
    temperature (0: argmax, lowest id wins a tie), top-p (smallest set of most probable tokens whose
    probability sum is >= top_p), then one uniform number u = counter_uniform(seeds[s], draws[s]) picks
    along the kept tokens in order of falling probability, ties by rising id.

    score[s] = 1: also report, for each new token t of the sequence, the log-probability of its known successor
    `next_ids[t]` (-1: unknown yet), so that chunks of one prompt join without a seam.
    top_k[s]: how many alternatives to report for the drawn token (and for scored ones); -1: no logprobs.
    """

    token_ids: I32  # [T]
    starts: I32  # [S+1]
    next_ids: I32  # [T], successor of each token where score is 1, else -1
    first_positions: I32  # [S]
    block_tables: I32  # [S, B], -1 padded
    sample: U8  # [S]
    score: U8  # [S]
    temperatures: F32  # [S]
    top_ps: F32  # [S]
    presence_penalties: F32  # [S]
    frequency_penalties: F32  # [S]
    seeds: U64  # [S]
    draws: U64  # [S], number of the draw within its answer
    top_k: I32  # [S]
    bias_starts: I32  # [S+1]
    bias_ids: I32  # [nnz]
    bias_values: F32  # [nnz]
    count_starts: I32  # [S+1]
    count_ids: I32  # [nnz]
    counts: I32  # [nnz]
    mask_rows: I32  # [S]
    masks: U32  # [num_masks, ceil(V/32)]
    privileges: U8 | None = None  # [T], who said each token; looked at only by models that have such a table

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.first_positions)


@dataclass(kw_only=True, slots=True)
class StepResult:
    """What a step found.

    token_ids[s]: the drawn token, -1 where sample[s] was 0. logprobs[s]: its log-probability under the
    model's own distribution (NaN where top_k[s] < 0 or nothing was drawn). top_ids/top_logprobs: [S, K],
    K = max(top_k, 0 if none), best first, ties by rising id, padded with -1/NaN.

    scored_*: R rows, one per new token of every sequence with score[s] = 1, in batch order: the
    log-probability of `next_ids[t]` under the logits after token t (NaN where next_ids[t] is -1) and the
    best alternatives at that place, padded like top_*.
    """

    token_ids: I32  # [S]
    logprobs: F32  # [S]
    top_ids: I32  # [S, K]
    top_logprobs: F32  # [S, K]
    scored_logprobs: F32  # [R]
    scored_top_ids: I32  # [R, K]
    scored_top_logprobs: F32  # [R, K]
    stats: dict[str, float] = field(default_factory=dict)


class Runner(Protocol):
    """A model that can take a step. `native.NativeRunner` on a CPU, `engine.torch_runner.TorchRunner` anywhere."""

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens per key/value block."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks in the key/value pool."""
        ...

    def step(self, batch: StepBatch) -> StepResult:
        """Compute the batch, write its keys and values, sample. Raises EngineError on failure."""
        ...
