"""The engine: requests in, events out, one synchronous `step` at a time. Not thread-safe; `EngineLoop` is.

An answer depends on its own request only. Draw number i of an answer makes its token i, whether tokens before it were
drawn or forced by a grammar, and tokens computed again after a preemption are not drawn again; so with a runner that
is deterministic per sequence the same request and seed give the same answer whatever the batch, the chunk sizes, the
prefix cache and the memory pressure.

Failures stay where they are: a matcher that raises ends its own request; a runner that raises ends the requests of
that step and empties the prefix cache, since nobody knows what the failed step wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from smelt.core.errors import ContextLengthError, EngineError, InvalidRequestError, OverloadedError, SmeltError
from smelt.core.sampling import FinishReason, TokenLogprob
from smelt.core.step import Runner, StepResult
from smelt.engine.batch import BatchBuilder, has_mask, is_sampled, is_scored
from smelt.engine.blocks import BlockPool
from smelt.engine.report import collect_prompt_logprobs, drawn_logprob
from smelt.engine.requests import Ended, EngineEvent, EngineRequest, PromptScored, TokenDrawn
from smelt.engine.scheduler import Chunk, Scheduler
from smelt.engine.sequence import EngineSequence

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Gauges (running, waiting, blocks) and counters since the engine was made."""

    num_running: int
    num_waiting: int
    num_blocks_used: int
    num_blocks_cached: int
    num_blocks: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    num_preemptions: int
    num_steps: int
    num_failed_steps: int


class Engine:
    """Runs requests on a Runner.

    context_len: most tokens of prompt and answer together. max_batch_tokens: budget of one step; what a long prompt
    may delay the others' next token by. max_running: sequences in one step. max_waiting: how many more requests are
    admitted before OverloadedError.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        context_len: int,
        max_batch_tokens: int = 256,
        max_running: int = 16,
        max_waiting: int = 256,
    ) -> None:
        self.context_len = context_len
        self.max_live = max_running + max_waiting
        self._runner = runner
        self._vocab_size = runner.vocab_size
        self._pool = BlockPool(runner.num_blocks)
        self._pool_tokens = runner.num_blocks * runner.block_size
        self._scheduler = Scheduler(
            self._pool, block_size=runner.block_size, max_batch_tokens=max_batch_tokens, max_running=max_running
        )
        self._builder = BatchBuilder(vocab_size=runner.vocab_size, max_running=max_running)
        self._sequences: dict[str, EngineSequence] = {}
        self._new: list[EngineSequence] = []
        self._pending: list[EngineEvent] = []
        self._prompt_tokens = self._generated_tokens = 0
        self._num_steps = self._num_failed_steps = 0

    @property
    def has_work(self) -> bool:
        """A `step` would do something."""
        return bool(self._sequences or self._pending)

    def check(self, request: EngineRequest) -> None:
        """Raise the UserError that `add` would raise for this request's own values. Safe from any thread."""
        num_prompt, num_new = len(request.prompt_ids), request.max_new_tokens
        if num_prompt == 0:
            raise InvalidRequestError("sought a prompt of at least one token, found none", param="prompt")
        if num_new < 0:
            raise InvalidRequestError(f"sought max_new_tokens >= 0, found {num_new}", param="max_tokens")
        if len(request.privileges) != num_prompt:
            raise EngineError(f"sought a privilege for each of {num_prompt} tokens, found {len(request.privileges)}")
        self._check_ids(request.prompt_ids, "prompt")
        self._check_ids(request.params.logit_bias, "logit_bias")
        if num_prompt + num_new > self.context_len:
            raise ContextLengthError(
                f"the context window is {self.context_len} tokens; found {num_prompt} in the prompt "
                f"and {num_new} requested for the answer"
            )
        if num_prompt + max(num_new - 1, 0) > self._pool_tokens:  # the last token's keys and values are never needed
            raise ContextLengthError(
                f"the memory for keys and values holds {self._pool_tokens} tokens; found {num_prompt} in the prompt "
                f"and {num_new} requested for the answer"
            )

    def add(self, request: EngineRequest) -> None:
        """Admit a request; from now on exactly one Ended comes for it.

        Raises InvalidRequestError or ContextLengthError for a request that can never run, OverloadedError when
        too many wait, EngineError for an id that is in use.
        """
        self.check(request)
        if request.id in self._sequences:
            raise EngineError(f"request id {request.id!r} is already in use")
        if len(self._sequences) >= self.max_live:
            raise OverloadedError(f"{self.max_live} requests are running or waiting, which is the limit; retry later")
        sequence = EngineSequence(request)
        self._sequences[request.id] = sequence
        self._scheduler.add(sequence)
        self._new.append(sequence)
        self._prompt_tokens += sequence.prompt_len

    def abort(self, request_id: str) -> bool:
        """End a request with reason ABORT and free its blocks now; the event comes with the next `step`.

        False when no such request lives, which is no error: it may just have ended.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._end(sequence, FinishReason.ABORT, self._pending)
        return True

    def step(self) -> list[EngineEvent]:
        """Compute one batch. Returns what happened, per request in order; never raises for a request's failure."""
        events, self._pending = self._pending, []
        for sequence in self._new:
            if self._sequences.get(sequence.request.id) is sequence:  # it may have been aborted
                self._start(sequence, events)
        self._new.clear()
        chunks = self._fill_masks(self._scheduler.schedule(), events)
        if not chunks:
            return events
        self._num_steps += 1
        try:
            result = self._runner.step(self._builder.build(chunks))
            drawn: list[int] = result.token_ids.tolist()
            if len(drawn) != len(chunks):
                raise EngineError(f"sought {len(chunks)} token ids from the runner, found {len(drawn)}")
        except Exception as error:  # whatever a runner raises, its requests end and the engine goes on
            self._fail_step(chunks, error, events)
            return events
        scored_row = 0
        for s, chunk in enumerate(chunks):
            num_scored = chunk.num_tokens if is_scored(chunk) else 0
            try:
                if chunk.sequence.prompt_logprobs is not None:
                    self._report_prompt(chunk, result, scored_row, events)
                self._advance(chunk, s, drawn[s], result, events)
            except Exception as error:  # a matcher refused, or the result has a gap: this request only
                self._fail(chunk.sequence, error, events)
            scored_row += num_scored
        return events

    def fail_all(self, error: Exception) -> list[EngineEvent]:
        """End every request with reason ERROR and forget all cached blocks: the way out of an internal failure."""
        events, self._pending = self._pending, []
        self._new.clear()
        for sequence in list(self._sequences.values()):
            self._end(sequence, FinishReason.ERROR, events, error=failure_message(error))
        self._pool.forget_all()
        return events

    def stats(self) -> EngineStats:
        """Numbers for /metrics; safe from any thread, exact between steps."""
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_blocks_used=self._pool.num_used,
            num_blocks_cached=self._pool.num_cached,
            num_blocks=self._pool.num_blocks,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._scheduler.num_cached_tokens,
            generated_tokens=self._generated_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._num_steps,
            num_failed_steps=self._num_failed_steps,
        )

    def check_integrity(self) -> None:
        """Raise EngineError when queues, blocks and requests disagree. For tests and quiet moments."""
        self._scheduler.check_integrity()
        queued = [*self._scheduler.running, *self._scheduler.waiting]
        if {id(s) for s in queued} != {id(s) for s in self._sequences.values()}:
            raise EngineError("a live request is in no queue, or a queue holds a dead one")
        if not self._sequences and self._pool.num_used:
            raise EngineError(f"{self._pool.num_used} blocks are in use and no request lives")

    def _start(self, sequence: EngineSequence, events: list[EngineEvent]) -> None:
        """Before the first computation: an answer may be empty, or begin with forced tokens."""
        request = sequence.request
        if request.max_new_tokens == 0 and not request.score_prompt:
            self._end(sequence, FinishReason.LENGTH, events)
        elif not request.score_prompt:  # whose prompt must be reported before any token
            try:
                self._append_forced(sequence, events)
            except Exception as error:  # a matcher's failure is its own request's
                self._fail(sequence, error, events)

    def _fill_masks(self, chunks: list[Chunk], events: list[EngineEvent]) -> list[Chunk]:
        """Compute the masks of this step; a request whose matcher fails ends and leaves the step."""
        alive: list[Chunk] = []
        num_masks = 0
        for chunk in chunks:
            matcher = chunk.sequence.request.matcher
            if matcher is not None and has_mask(chunk):
                row = self._builder.mask_row(num_masks)
                try:
                    matcher.fill_mask(row)
                    if not row.any():
                        raise EngineError("the grammar allows no token here")
                except Exception as error:  # a matcher's failure is its own request's
                    self._fail(chunk.sequence, error, events)
                    continue
                num_masks += 1
            alive.append(chunk)
        return alive

    def _report_prompt(self, chunk: Chunk, result: StepResult, scored_row: int, events: list[EngineEvent]) -> None:
        sequence = chunk.sequence
        if is_scored(chunk):
            collect_prompt_logprobs(chunk, result, scored_row)
        if sequence.prompt_logprobs is not None and sequence.num_unscored == 0:
            events.append(PromptScored(sequence.request.id, tuple(sequence.prompt_logprobs)))
            sequence.prompt_logprobs = None

    def _advance(self, chunk: Chunk, s: int, token_id: int, result: StepResult, events: list[EngineEvent]) -> None:
        """Book a computed chunk, and the token drawn after it if it was the last."""
        sequence = chunk.sequence
        request = sequence.request
        sampled = is_sampled(chunk)
        self._scheduler.computed(chunk)
        if not sampled:
            if chunk.is_last:  # only a prompt to be scored
                self._end(sequence, FinishReason.LENGTH, events)
            return
        if not 0 <= token_id < self._vocab_size:
            raise EngineError(f"sought a token id of 0 to {self._vocab_size - 1} from the runner, found {token_id}")
        logprob = drawn_logprob(token_id, result, s) if sequence.wants_logprobs else None
        if self._append(sequence, token_id, logprob, events) and request.matcher is not None:
            self._append_forced(sequence, events)

    def _append_forced(self, sequence: EngineSequence, events: list[EngineEvent]) -> None:
        """Fast-forward: what the grammar forces joins the answer undrawn, to be computed as one chunk.

        A request for log-probabilities draws these tokens under masks instead; each has only one choice.
        """
        matcher = sequence.request.matcher
        if matcher is None or sequence.wants_logprobs:
            return
        for token_id in matcher.forced_tokens():
            if not 0 <= token_id < self._vocab_size:
                raise EngineError(f"the grammar forces token id {token_id}, ids are 0 to {self._vocab_size - 1}")
            if not self._append(sequence, token_id, None, events):
                return

    def _append(
        self, sequence: EngineSequence, token_id: int, logprob: TokenLogprob | None, events: list[EngineEvent]
    ) -> bool:
        """One more token of the answer; False when the answer ends with it."""
        request = sequence.request
        if token_id in request.stop_ids:
            self._end(sequence, FinishReason.STOP, events)
            return False
        if request.matcher is not None:
            request.matcher.advance(token_id)
        sequence.append(token_id)
        self._generated_tokens += 1
        events.append(TokenDrawn(request.id, token_id, logprob))
        if sequence.num_generated >= request.max_new_tokens:
            self._end(sequence, FinishReason.LENGTH, events)
            return False
        return True

    def _end(
        self, sequence: EngineSequence, reason: FinishReason, events: list[EngineEvent], *, error: str | None = None
    ) -> None:
        """The one way out: free the blocks, say so."""
        del self._sequences[sequence.request.id]
        self._scheduler.remove(sequence)
        events.append(Ended(sequence.request.id, reason, sequence.cached_len or 0, error))

    def _fail(self, sequence: EngineSequence, error: Exception, events: list[EngineEvent]) -> None:
        _log.error("request %s failed", sequence.request.id, exc_info=error)
        self._end(sequence, FinishReason.ERROR, events, error=failure_message(error))

    def _fail_step(self, chunks: list[Chunk], error: Exception, events: list[EngineEvent]) -> None:
        _log.error("a step of %d requests failed", len(chunks), exc_info=error)
        self._num_failed_steps += 1
        for chunk in chunks:
            self._end(chunk.sequence, FinishReason.ERROR, events, error=failure_message(error))
        self._pool.forget_all()

    def _check_ids(self, token_ids: Collection[int], param: str) -> None:
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            raise InvalidRequestError(
                f"token ids are 0 to {self._vocab_size - 1}; found {min(token_ids)} to {max(token_ids)}", param=param
            )


def failure_message(error: Exception) -> str:
    """What a client may see: our own errors' words; of a foreign one only its kind, since it may quote anything."""
    return str(error) if isinstance(error, SmeltError) else f"internal failure ({type(error).__name__})"
