"""A model whose next token is a function of every token before it, and an LLM around it: no weights, no native core."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from smelt.chat.house import HouseRenderer
from smelt.core.step import StepBatch, StepResult
from smelt.engine.sampling import sample_step
from smelt.generate.llm import LLM, Identity
from smelt.generate.options import LLMOptions
from smelt.tokenizer import Tokenizer
from tests.tiny import tiny_config, tiny_tokenizer_files

Logits = Callable[[list[int]], np.ndarray]


class HistoryRunner:
    """Keeps the tokens themselves in the paged pool and asks `logits` for what follows them."""

    def __init__(self, vocab_size: int, logits: Logits, *, num_blocks: int = 128, block_size: int = 16) -> None:
        self.vocab_size, self.num_blocks, self.block_size = vocab_size, num_blocks, block_size
        self._logits = logits
        self._pool = np.full((num_blocks, block_size), -1, np.int64)
        self.num_steps = 0
        self.num_computed = 0

    def step(self, batch: StepBatch) -> StepResult:
        self.num_steps += 1
        self.num_computed += len(batch.token_ids)
        last, scored = [], []
        for s in range(batch.num_sequences):
            start, end, first = int(batch.starts[s]), int(batch.starts[s + 1]), int(batch.first_positions[s])
            history = [int(self._place(batch, s, position)) for position in range(first)]
            for offset, token_id in enumerate(batch.token_ids[start:end].tolist()):
                table = batch.block_tables[s]
                position = first + offset
                self._pool[table[position // self.block_size], position % self.block_size] = token_id
                history.append(token_id)
                if batch.score[s] or (offset == end - start - 1 and batch.sample[s]):
                    row = self._logits(history)
                    if batch.score[s]:
                        scored.append(row)
            last.append(row if batch.sample[s] else np.zeros(self.vocab_size, np.float32))
        return sample_step(np.array(last, np.float32), np.array(scored, np.float32).reshape(-1, self.vocab_size), batch)

    def _place(self, batch: StepBatch, s: int, position: int) -> int:
        token_id = self._pool[batch.block_tables[s][position // self.block_size], position % self.block_size]
        assert token_id >= 0, "reads what was never written"
        return int(token_id)


def tiny_tokenizer() -> Tokenizer:
    """The tokenizer of the tiny folders, with the house format's control tokens."""
    files, _ = tiny_tokenizer_files()
    return Tokenizer.from_json(files["tokenizer.json"].decode())


def random_logits(vocab_size: int, seed: int = 0, spread: float = 2.0) -> Logits:
    """Noise that depends on the last three tokens and the length."""

    def logits(history: list[int]) -> np.ndarray:
        key = hashlib.blake2b(repr((seed, history[-3:], len(history))).encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(key, "little")).normal(0, spread, vocab_size).astype(np.float32)

    return logits


def scripted_logits(tokenizer: Tokenizer, reply: Sequence[int]) -> Logits:
    """After the last `<|assistant|>`, wants exactly `reply` and then the end."""
    assistant, end = (tokenizer.control_ids[name] for name in ("<|assistant|>", "<|end|>"))

    def logits(history: list[int]) -> np.ndarray:
        row = np.zeros(tokenizer.vocab_size, np.float32)
        num_said = history[::-1].index(assistant) if assistant in history else len(history)
        row[reply[num_said] if num_said < len(reply) else end] = 20.0
        return row

    return logits


def make_llm(
    logits: Logits | None = None, *, num_blocks: int = 128, model_context_len: int = 1024, **options: Any
) -> LLM:
    """An LLM in the house format over a HistoryRunner."""
    _, ids = tiny_tokenizer_files()
    tokenizer = tiny_tokenizer()
    config = tiny_config("gemma3_text", **{"context_len": model_context_len, **ids})
    runner = HistoryRunner(config.vocab_size, logits or random_logits(config.vocab_size), num_blocks=num_blocks)
    return LLM(
        config=config,
        tokenizer=tokenizer,
        renderer=HouseRenderer(tokenizer),
        runner=runner,
        identity=Identity(name="tiny", fingerprint="fp_0", created=0),
        options=LLMOptions(**options),
    )
