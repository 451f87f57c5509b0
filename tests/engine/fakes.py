"""A model in pure Python whose every answer depends on every block it reads, and the answers it should give.

`FakeRunner` keeps one integer per cached token, chained to the integer before it, and makes its logits from all of
them read back through the block table: a block too few, too early, too old or someone else's changes the answer.
`expected_answer` computes the same model without blocks, batches, chunks or caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smelt.core.errors import EngineError
from smelt.core.sampling import FinishReason, SamplingParams, TokenLogprob, counter_uniform
from smelt.core.step import StepBatch, StepResult
from smelt.engine.engine import Engine
from smelt.engine.requests import EngineEvent, EngineRequest, PromptScored, TokenDrawn
from smelt.engine.sampling import sample_batch, sample_step, score_rows

VOCAB = 11
_MASK64 = (1 << 64) - 1


def make_batch(num_sequences: int = 1, **fields: object) -> StepBatch:
    """One new token per sequence, greedy, nothing reported; `fields` replace arrays."""
    n = num_sequences
    zeros = np.zeros(n + 1, np.int32)
    values: dict[str, object] = {
        "token_ids": np.zeros(n, np.int32),
        "starts": np.arange(n + 1, dtype=np.int32),
        "next_ids": np.full(n, -1, np.int32),
        "first_positions": np.zeros(n, np.int32),
        "block_tables": np.zeros((n, 1), np.int32),
        "sample": np.ones(n, np.uint8),
        "score": np.zeros(n, np.uint8),
        "temperatures": np.zeros(n, np.float32),
        "top_ps": np.ones(n, np.float32),
        "presence_penalties": np.zeros(n, np.float32),
        "frequency_penalties": np.zeros(n, np.float32),
        "seeds": np.zeros(n, np.uint64),
        "draws": np.zeros(n, np.uint64),
        "top_k": np.full(n, -1, np.int32),
        "bias_starts": zeros,
        "bias_ids": np.zeros(0, np.int32),
        "bias_values": np.zeros(0, np.float32),
        "count_starts": zeros,
        "count_ids": np.zeros(0, np.int32),
        "counts": np.zeros(0, np.int32),
        "mask_rows": np.full(n, -1, np.int32),
        "masks": np.zeros((0, 1), np.uint32),
    }
    return StepBatch(**{**values, **fields})  # type: ignore[arg-type]


def mask_of(vocab_size: int, allowed: set[int]) -> np.ndarray:
    """One mask row [1, ceil(V/32)]."""
    words = np.zeros((1, -(-vocab_size // 32)), np.uint32)
    for token in allowed:
        words[0, token // 32] |= np.uint32(1 << (token % 32))
    return words


def request(prompt: Sequence[int], *, id: str = "r", **fields: Any) -> EngineRequest:
    """A greedy request for four tokens; names of SamplingParams and of EngineRequest both work (seed: the latter)."""
    names = SamplingParams.__dataclass_fields__.keys() - {"seed"}
    params = {name: fields.pop(name) for name in names if name in fields}
    values: dict[str, Any] = {"privileges": bytes(len(prompt)), "seed": 0, "max_new_tokens": 4, **fields}
    return EngineRequest(id=id, prompt_ids=prompt, params=SamplingParams(**{"temperature": 0.0, **params}), **values)


# --- the model --------------------------------------------------------------------------------------------------


def kv_of(previous: int, token_id: int, position: int) -> int:
    """What the model stores of a token: it depends on all tokens before it."""
    return hash((previous, token_id, position))


def logits_of(stored: Sequence[int]) -> np.ndarray:
    """Logits [V] from everything stored; in steps of a quarter, so that ties occur."""
    seed = hash(tuple(stored)) & _MASK64
    return np.array([int(counter_uniform(seed, t) * 16) / 4 for t in range(VOCAB)], np.float32)


@dataclass
class FakeRunner:
    """The model over paged blocks. `violations` collects breaches of the StepBatch contract by the engine."""

    num_blocks: int = 64
    block_size: int = 4
    vocab_size: int = VOCAB
    fail_next: bool = False
    num_steps: int = 0
    batch_sizes: list[tuple[int, int]] = field(default_factory=list)  # (tokens, sequences) of each step
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store: list[list[int | None]] = [[None] * self.block_size for _ in range(self.num_blocks)]

    def step(self, batch: StepBatch) -> StepResult:
        self.num_steps += 1
        self.batch_sizes.append((len(batch.token_ids), batch.num_sequences))
        if self.fail_next:
            self.fail_next = False
            for block in set(batch.block_tables[batch.block_tables >= 0].tolist()):
                self.store[block] = [-1] * self.block_size  # a failed step leaves nothing that can be trusted
            raise EngineError("the fake model failed")
        written: set[tuple[int, int]] = set()
        last, scored = [], []
        for s in range(batch.num_sequences):
            rows = [logits_of(stored) for stored in self._compute(batch, s, written)]
            last.append(rows[-1])
            scored += rows if batch.score[s] else []
        return sample_step(np.array(last), np.array(scored).reshape(-1, VOCAB), batch)

    def _compute(self, batch: StepBatch, s: int, written: set[tuple[int, int]]) -> list[list[int]]:
        """Everything stored up to each new token of sequence `s`."""
        start, end, first = int(batch.starts[s]), int(batch.starts[s + 1]), int(batch.first_positions[s])
        if end <= start:
            self.violations.append("a sequence without new tokens")
        table = batch.block_tables[s].tolist()
        stored: list[int] = []
        for position in range(first):
            stored.append(self._read(table, position))
        states = []
        for offset, token_id in enumerate(batch.token_ids[start:end].tolist()):
            position = first + offset
            place = (table[position // self.block_size], position % self.block_size)
            if place[0] < 0:
                self.violations.append("no block for a new token")
            if place in written:
                self.violations.append("two sequences write one place")
            written.add(place)
            self.store[place[0]][place[1]] = kv_of(stored[-1] if stored else 0, token_id, position)
            stored.append(self._read(table, position))
            states.append(stored[:])
        return states

    def _read(self, table: list[int], position: int) -> int:
        block = table[position // self.block_size]
        value = self.store[block][position % self.block_size] if block >= 0 else None
        if value is None:
            self.violations.append("reads what was never written")
            return 0
        return value


# --- a grammar --------------------------------------------------------------------------------------------------


class FakeGrammar:
    """Which tokens may come next depends on all tokens so far; about every third time there is only one."""

    def __init__(self, seed: int, *, fails_after: int | None = None) -> None:
        self.seed = seed
        self.history: tuple[int, ...] = ()
        self.fails_after = fails_after

    def _allowed(self, history: tuple[int, ...]) -> set[int]:
        seed = hash((self.seed, *history)) & _MASK64
        if counter_uniform(seed, 0) < 0.35:
            return {int(counter_uniform(seed, 1) * VOCAB)}
        return {t for t in range(VOCAB) if counter_uniform(seed, 2 + t) < 0.5} or {0}

    def fill_mask(self, row: np.ndarray) -> None:
        row |= mask_of(VOCAB, self._allowed(self.history))[0]

    def advance(self, token_id: int) -> None:
        if token_id not in self._allowed(self.history):
            raise EngineError("the grammar does not allow this token")
        if self.fails_after is not None and len(self.history) >= self.fails_after:
            raise ValueError("the grammar broke")
        self.history += (token_id,)

    def forced_tokens(self) -> list[int]:
        history, forced = self.history, []
        while len(forced) < 8 and len(allowed := self._allowed(history)) == 1:
            forced += allowed
            history += tuple(allowed)
        return forced

    def copy(self) -> FakeGrammar:
        """As it was before the first token."""
        return FakeGrammar(self.seed, fails_after=self.fails_after)


# --- answers ----------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a client of the engine saw of one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    prompt: tuple[TokenLogprob | None, ...] | None = None
    reason: FinishReason | None = None
    error: str | None = None
    cached_len: int = 0

    def add(self, event: EngineEvent) -> None:
        """Take an event, refusing what must not happen: anything after Ended, a late or second prompt report."""
        assert self.reason is None, f"{event} after the terminal event"
        if isinstance(event, TokenDrawn):
            self.tokens.append(event.token_id)
            self.logprobs.append(event.logprob)
        elif isinstance(event, PromptScored):
            assert self.prompt is None and not self.tokens
            self.prompt = event.logprobs
        else:
            self.reason, self.error, self.cached_len = event.reason, event.error, event.cached_len

    def same_as(self, other: Answer) -> bool:
        """Equal in everything but how it was computed."""
        mine = (self.tokens, self.logprobs, self.prompt, self.reason, self.error)
        return mine == (other.tokens, other.logprobs, other.prompt, other.reason, other.error)


def collect(events: Sequence[EngineEvent], into: dict[str, Answer]) -> None:
    """Sort events by request."""
    for event in events:
        into.setdefault(event.request_id, Answer()).add(event)


def run(engine: Engine, *requests: EngineRequest, check: bool = True) -> dict[str, Answer]:
    """Add all requests at once and step until nothing is left."""
    answers: dict[str, Answer] = {}
    for one in requests:
        engine.add(one)
    for _ in range(100_000):
        if not engine.has_work:
            break
        collect(engine.step(), answers)
        if check:
            engine.check_integrity()
    assert not engine.has_work, "the engine makes no progress"
    return answers


def expected_answer(one: EngineRequest) -> Answer:
    """The answer without an engine: one token at a time, no blocks. Grammars draw under masks, never fast-forward."""
    stored: list[int] = []
    tokens = list(one.prompt_ids)
    for position, token_id in enumerate(tokens):
        stored.append(kv_of(stored[-1] if stored else 0, token_id, position))
    k = -1 if one.params.top_logprobs is None else one.params.top_logprobs
    answer = Answer()
    if one.score_prompt:
        rows = [_scored(stored[:p], tokens[p], k) for p in range(1, len(tokens))]
        answer.prompt = (None, *rows)
    grammar = one.matcher.copy() if isinstance(one.matcher, FakeGrammar) else None
    while len(answer.tokens) < one.max_new_tokens:
        token_id, logprob = _drawn(one, logits_of(stored), answer.tokens, grammar, k)
        if token_id in one.stop_ids:
            answer.reason = FinishReason.STOP
            return answer
        if grammar is not None:
            grammar.advance(token_id)
        answer.tokens.append(token_id)
        answer.logprobs.append(logprob)
        stored.append(kv_of(stored[-1], token_id, len(stored)))
    answer.reason = FinishReason.LENGTH
    return answer


def _top(ids: np.ndarray, logprobs: np.ndarray) -> tuple[tuple[int, float], ...]:
    return tuple((int(i), float(p)) for i, p in zip(ids, logprobs, strict=True))


def _scored(stored: list[int], token_id: int, k: int) -> TokenLogprob:
    logprobs, ids, top = score_rows(logits_of(stored)[None], np.array([token_id], np.int32), k)
    return TokenLogprob(token_id, float(logprobs[0]), _top(ids[0], top[0]))


def _drawn(
    one: EngineRequest, logits: np.ndarray, generated: list[int], grammar: FakeGrammar | None, k: int
) -> tuple[int, TokenLogprob | None]:
    p = one.params
    counted = sorted(set(generated))
    mask = np.zeros((1, 1), np.uint32)
    if grammar is not None:
        grammar.fill_mask(mask[0])
    batch = make_batch(
        temperatures=np.array([p.temperature], np.float32),
        top_ps=np.array([p.top_p], np.float32),
        presence_penalties=np.array([p.presence_penalty], np.float32),
        frequency_penalties=np.array([p.frequency_penalty], np.float32),
        seeds=np.array([one.seed & _MASK64], np.uint64),
        draws=np.array([len(generated)], np.uint64),
        top_k=np.array([k], np.int32),
        bias_starts=np.array([0, len(p.logit_bias)], np.int32),
        bias_ids=np.array(list(p.logit_bias), np.int32),
        bias_values=np.array(list(p.logit_bias.values()), np.float32),
        count_starts=np.array([0, len(counted)], np.int32),
        count_ids=np.array(counted, np.int32),
        counts=np.array([generated.count(t) for t in counted], np.int32),
        mask_rows=np.array([-1 if grammar is None else 0], np.int32),
        masks=mask,
    )
    token_ids, logprobs, ids, top = sample_batch(logits[None], batch)
    logprob = TokenLogprob(int(token_ids[0]), float(logprobs[0]), _top(ids[0], top[0])) if k >= 0 else None
    return int(token_ids[0]), logprob
