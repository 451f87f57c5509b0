"""TorchRunner over scattered blocks, in chunks and in company, against one plain pass of the decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from smelt.core.errors import EngineError
from smelt.core.step import StepBatch
from smelt.engine.torch_runner import TorchRunner
from smelt.model.decoder import Decoder
from tests.tiny import random_tensors, tiny_config, variants

BLOCK = 4


def make_batch(
    chunks: Sequence[tuple[Sequence[int], int]],
    tables: Sequence[Sequence[int]],
    *,
    score: bool = False,
    top_k: int = -1,
) -> StepBatch:
    """Greedy step over (new tokens, first position) per sequence; scoring knows each successor inside the chunk."""
    size = len(chunks)
    ids = [token for tokens, _ in chunks for token in tokens]
    successors = [token for tokens, _ in chunks for token in [*tokens[1:], -1]]
    none = np.zeros(0, np.int32)
    return StepBatch(
        token_ids=np.array(ids, np.int32),
        starts=np.cumsum([0, *(len(tokens) for tokens, _ in chunks)], dtype=np.int32),
        next_ids=np.array(successors if score else [-1] * len(ids), np.int32),
        first_positions=np.array([first for _, first in chunks], np.int32),
        block_tables=np.array(tables, np.int32),
        sample=np.ones(size, np.uint8),
        score=np.full(size, score, np.uint8),
        temperatures=np.zeros(size, np.float32),
        top_ps=np.ones(size, np.float32),
        presence_penalties=np.zeros(size, np.float32),
        frequency_penalties=np.zeros(size, np.float32),
        seeds=np.zeros(size, np.uint64),
        draws=np.zeros(size, np.uint64),
        top_k=np.full(size, top_k, np.int32),
        bias_starts=np.zeros(size + 1, np.int32),
        bias_ids=none,
        bias_values=np.zeros(0, np.float32),
        count_starts=np.zeros(size + 1, np.int32),
        count_ids=none,
        counts=none,
        mask_rows=np.full(size, -1, np.int32),
        masks=np.zeros((0, 3), np.uint32),
    )


@pytest.fixture(params=["llama", "qwen2-yarn-window", "gemma3"])
def models(request: pytest.FixtureRequest) -> Iterator[tuple[TorchRunner, Decoder]]:
    config = variants()[request.param]
    tensors = random_tensors(config, seed=3)
    yield TorchRunner(config, tensors, num_blocks=40, block_size=BLOCK), Decoder.from_tensors(config, tensors)


@torch.no_grad()
def plain_logprobs(decoder: Decoder, ids: Sequence[int]) -> NDArray[np.float32]:
    return decoder(torch.tensor([ids])).log_softmax(-1)[0].numpy()


def test_chunks_blocks_and_company_change_nothing(models: tuple[TorchRunner, Decoder]) -> None:
    """Three sequences over a shuffled pool, prefilled in uneven chunks side by side, then decoded greedily."""
    runner, decoder = models
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 96, size=length).tolist() for length in (21, 9, 14)]
    tables = rng.permutation(40)[:30].reshape(3, 10)
    answers: list[list[int]] = [[], [], []]
    done = [0, 0, 0]
    for _ in range(40):
        chunks, rows = [], []
        for s, prompt in enumerate(prompts):
            known = prompt + answers[s]
            size = min(int(rng.integers(1, 8)), len(known) - done[s])
            if size and len(answers[s]) < 5:
                chunks.append((known[done[s] : done[s] + size], done[s]))
                rows.append(s)
        if not chunks:
            break
        result = runner.step(make_batch(chunks, tables[rows], top_k=3))
        for row, s in enumerate(rows):
            done[s] += len(chunks[row][0])
            if done[s] < len(prompts[s]) + len(answers[s]):
                continue
            sought = plain_logprobs(decoder, prompts[s] + answers[s])[-1]
            assert result.token_ids[row] == sought.argmax()
            assert result.logprobs[row] == pytest.approx(sought.max(), abs=1e-4)
            assert result.top_ids[row].tolist() == np.argsort(-sought, kind="stable")[:3].tolist()
            answers[s].append(int(result.token_ids[row]))
    assert min(map(len, answers)) >= 3


def test_scores_every_known_successor(models: tuple[TorchRunner, Decoder]) -> None:
    runner, decoder = models
    ids = np.random.default_rng(1).integers(2, 96, size=17).tolist()
    table = [[7, 3, 30, 12, 21]]
    first = runner.step(make_batch([(ids[:10], 0)], table, score=True, top_k=2))
    second = runner.step(make_batch([(ids[9:], 9)], table, score=True, top_k=2))
    found = np.concatenate([first.scored_logprobs[:9], second.scored_logprobs])
    sought = plain_logprobs(decoder, ids)
    np.testing.assert_allclose(found[:-1], sought[np.arange(16), ids[1:]], atol=1e-4)
    assert np.isnan(found[-1]), "nothing is known to follow the last token"
    assert second.scored_top_ids[-1].tolist() == np.argsort(-sought[-1], kind="stable")[:2].tolist()


def test_bad_batches_are_engine_errors() -> None:
    config = tiny_config("llama")
    runner = TorchRunner(config, random_tensors(config), num_blocks=4, block_size=BLOCK)
    for chunk, table, about in (
        (([96], 0), [[0]], "vocabulary"),
        (([-1], 0), [[0]], "vocabulary"),
        (([5] * 5, 0), [[0, -1]], "no block"),
        (([5] * 5, 0), [[0]], "no block"),
        (([5], 0), [[4]], "no block"),
    ):
        with pytest.raises(EngineError, match=about):
            runner.step(make_batch([chunk], table))
