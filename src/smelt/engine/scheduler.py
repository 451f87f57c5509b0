"""What to compute next: one token budget per step and no prefill or decode phases.

The idea is vLLM V1's: every sequence has tokens known and tokens computed, and a step brings the second closer to the
first. Chunked prefill, prefix hits, forced tokens and recomputation after a preemption are the same thing.

Policy, in order:
1. Running sequences that decode get their tokens first, so a long prompt never stops the others (reference: the user
   pain of llama.cpp#4216). If a block is missing, the newest running sequence gives all of its blocks back and waits
   at the head of the queue; the oldest one always advances, so everything ends.
2. Waiting sequences are admitted in order of arrival, when all blocks of their known tokens are there at once (a
   half-admitted prompt would only be preempted again).
3. What is left of the budget is shared among prompts: half to the oldest, half of the rest to the next, and so on.
   Nobody waits for a long prompt, and a long prompt waits for nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from smelt.core.errors import EngineError
from smelt.engine.blocks import BlockPool
from smelt.engine.sequence import EngineSequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_tokens` known tokens of a sequence, from its `num_computed` on.

    is_last: after it everything known is computed, and the next token can be drawn.
    """

    sequence: EngineSequence
    num_tokens: int
    is_last: bool

    @classmethod
    def of(cls, sequence: EngineSequence, num_tokens: int) -> Chunk:
        """A chunk of this length."""
        return cls(sequence, num_tokens, num_tokens == sequence.num_missing)


def share_budget(budget: int, wants: Sequence[int]) -> list[int]:
    """Divide `budget` tokens: at least one each, half of what is left to each in order, nothing left unused.

    `budget` must be at least len(wants), every want at least 1.
    """
    grants: list[int] = []
    left = budget
    for i, want in enumerate(wants):
        num_behind = len(wants) - i - 1
        most = max(1, min(left - num_behind, left // 2)) if num_behind else left
        grants.append(min(want, most))
        left -= grants[-1]
    for i, want in enumerate(wants):
        extra = min(want - grants[i], left)
        grants[i] += extra
        left -= extra
    return grants


class Scheduler:
    """Queues and blocks of all live sequences.

    `running` and `waiting` together are in order of arrival at all times: preemption takes the newest running
    sequence and puts it at the head of the queue.
    """

    def __init__(self, pool: BlockPool, *, block_size: int, max_batch_tokens: int, max_running: int) -> None:
        if not 1 <= max_running <= max_batch_tokens:
            raise ValueError(f"sought 1 <= max_running <= max_batch_tokens, found {max_running} and {max_batch_tokens}")
        self.pool = pool
        self.block_size = block_size
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.running: list[EngineSequence] = []
        self.waiting: deque[EngineSequence] = deque()
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # prompt tokens found in the prefix cache, at first admission only

    def add(self, sequence: EngineSequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: EngineSequence) -> None:
        """Take a sequence out, wherever it is, and give its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.release(sequence.blocks)
            sequence.blocks = []
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, decoding sequences first; each has its blocks. Empty only without work."""
        num_preemptions = self.num_preemptions
        chunks: list[Chunk] = []
        extra_left = self.max_batch_tokens - self.max_running  # one token for every sequence is set aside
        for sequence in self.running[:]:
            if sequence.decoding and self._grow(sequence):
                extra = min(sequence.num_missing - 1, extra_left)
                extra_left -= extra
                chunks.append(Chunk.of(sequence, 1 + extra))
        if self.waiting and self.num_preemptions == num_preemptions:
            self._admit()
        if len(chunks) < len(self.running):
            prompts = [sequence for sequence in self.running if not sequence.decoding]
            budget_left = self.max_batch_tokens - sum(chunk.num_tokens for chunk in chunks)
            grants = share_budget(budget_left, [sequence.num_missing for sequence in prompts])
            chunks.extend(map(Chunk.of, prompts, grants))
        return chunks

    def computed(self, chunk: Chunk) -> None:
        """The chunk's keys and values are in the pool: move on, and publish the blocks that became full."""
        sequence = chunk.sequence
        sequence.decoding = chunk.is_last
        sequence.num_computed += chunk.num_tokens
        num_full = sequence.num_computed // self.block_size
        if num_full > sequence.num_published and not sequence.request.score_prompt:
            hashes = sequence.block_hashes(num_full, self.block_size)
            for i in range(sequence.num_published, num_full):
                self.pool.publish(sequence.blocks[i], hashes[i + 1])
            sequence.num_published = num_full

    def check_integrity(self) -> None:
        """Raise EngineError when blocks and sequences disagree; for tests and for a quiet moment."""
        for sequence in self.waiting:
            if sequence.blocks or sequence.num_computed:
                raise EngineError("a waiting sequence holds blocks or computed tokens")
        for sequence in self.running:
            if sequence.num_computed > len(sequence.blocks) * self.block_size:
                raise EngineError("a sequence has more computed tokens than blocks for them")
        if any(older is newer for older, newer in pairwise([*self.running, *self.waiting])):
            raise EngineError("a sequence is in two places")
        if len(self.running) > self.max_running:
            raise EngineError(f"{len(self.running)} sequences run, at most {self.max_running} may")
        self.pool.check_integrity([sequence.blocks for sequence in self.running])

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _grow(self, sequence: EngineSequence) -> bool:
        """Get blocks for all known tokens, preempting newer sequences; False if it had to give way itself."""
        missing = self._num_blocks(len(sequence.token_ids)) - len(sequence.blocks)
        while missing > self.pool.num_available:
            newest = self.running[-1]
            self._preempt(newest)
            if newest is sequence:
                return False
        if missing > 0:
            sequence.blocks.extend(self.pool.allocate(missing))
        return True

    def _preempt(self, sequence: EngineSequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.forget_computed()
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            num_known = len(sequence.token_ids)
            found: list[int] = []
            if not sequence.request.score_prompt:
                # The last known token is always computed: its logits are what the next draw needs.
                num_sharable = (num_known - 1) // self.block_size
                hashes = sequence.block_hashes(num_sharable, self.block_size)
                found = self.pool.find(islice(hashes, 1, num_sharable + 1))
            missing = self._num_blocks(num_known) - len(found)
            headroom = len(self.running)  # a block for each running sequence, or admission would soon preempt again
            if missing + headroom > self.pool.num_available - self.pool.num_unreferenced(found):
                return
            self.waiting.popleft()
            self.pool.share(found)
            sequence.blocks = [*found, *self.pool.allocate(missing)]
            sequence.num_computed = len(found) * self.block_size
            sequence.num_published = len(found)
            if sequence.cached_len is None:
                sequence.cached_len = min(sequence.num_computed, sequence.prompt_len)
                self.num_cached_tokens += sequence.cached_len
            self.running.append(sequence)
