"""Streams: an order that depends on seed and number alone, every text once an epoch, weights that are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from smelt.chat.house import HouseRenderer
from smelt.core.errors import DataError
from smelt.core.messages import Privilege
from smelt.data.batches import Batch, Encoded, Mixed, encode
from smelt.data.prefetch import Prefetched
from smelt.data.shards import TokenShards, tokenize_corpus
from smelt.data.stream import Conversations, PackedStream, Recorded, Texts, batches_of_step
from smelt.data.tasks.mixture import Mixture
from tests.data.corpora import make_corpus, tiny_tokenizer

SERVICE = Mixed(mixture=Mixture(weights={"service": 1, "classify": 1}, languages={"en": 1}), seed=3)


@pytest.fixture(scope="module")
def renderer() -> HouseRenderer:
    return HouseRenderer(tiny_tokenizer())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, {"web": [120, 80], "books": [60]})
    return tokenize_corpus(folder, tiny_tokenizer())


@pytest.fixture(scope="module")
def stream(renderer: HouseRenderer, shards: TokenShards) -> PackedStream:
    chat = Conversations(example_at=SERVICE, renderer=renderer, max_len=500)
    return PackedStream(
        sources=[(chat, 1.0), (Texts(shards=shards, seed=5), 3.0)],
        row_len=512,
        rows=4,
        pad_id=0,
        seed=7,
        batches_per_chunk=4,
        privileges=True,
    )


def same(a: Batch, b: Batch) -> bool:
    fields = ("inputs", "targets", "segment_ids", "privileges")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in fields)


def test_a_chunk_depends_on_its_number_alone(stream: PackedStream) -> None:
    later = stream.chunk(2)
    first = stream.chunk(0)
    again = stream.chunk(2)
    assert len(later) == stream.batches_per_chunk
    assert all(same(a, b) for a, b in zip(later, again, strict=True))
    assert not any(same(a, b) for a in first for b in later)


def test_text_fills_what_conversations_leave(stream: PackedStream) -> None:
    """Same shape always, at least 99 % full, a quarter of the tokens from conversations."""
    batches = [batch for number in range(6) for batch in stream.chunk(number)]
    assert {batch.inputs.shape for batch in batches} == {(4, 512)}
    full = sum(batch.num_tokens for batch in batches)
    assert full / sum(batch.inputs.size for batch in batches) > 0.99
    bos = tiny_tokenizer().control_ids["<|bos|>"]
    controls = set(tiny_tokenizer().control_ids.values())
    chat = 0
    for batch in batches:
        assert batch.segment_ids is not None
        for inputs, targets, segments in zip(batch.inputs, batch.targets, batch.segment_ids, strict=True):
            for segment in range(segments.max() + 1):
                inside = segments == segment
                if inputs[inside][0] == bos and inside.sum() > 1 and inputs[inside][1] in controls:
                    chat += inside.sum()
                    assert (targets[inside] < 0).any(), "what the user says is not learned"
                else:
                    assert (targets[inside] >= 0).all(), "running text is learned whole"
    assert 0.22 < chat / full < 0.28


def test_each_text_token_once_an_epoch_in_a_new_order(shards: TokenShards) -> None:
    source = Texts(shards=shards, seed=5)
    total = int((shards.lengths - 1).sum())
    size = 1000
    sought = Counter[tuple[int, int]]()
    for i in range(len(shards)):
        ids = shards.document(i).tolist()
        sought.update(zip(ids[:-1], ids[1:], strict=True))
    chunks = [source.pieces(number, size) for number in range(2 * total // size + 1)]
    assert all(sum(len(piece) for piece in pieces) == size for pieces in chunks)
    flat = [pair for pieces in chunks for piece in pieces for pair in zip(piece.inputs, piece.targets, strict=True)]
    assert Counter(flat[:total]) == Counter(flat[total : 2 * total]) == sought
    assert flat[:total] != flat[total : 2 * total]
    assert {int(value) for piece in chunks[0] for value in piece.privileges} == {Privilege.ASSISTANT}


def test_recorded_conversations_come_whole_and_once_an_epoch() -> None:
    rng = np.random.default_rng(1)
    documents = [Encoded([i] * int(n), bytes([1]) * int(n)) for i, n in enumerate(rng.integers(1, 40, 90))]
    source = Recorded(documents=documents, max_len=30, seed=2)
    kept = [i for i, document in enumerate(documents) if 1 < len(document.ids) <= 30]
    total = sum(len(documents[i].ids) - 1 for i in kept)
    found = [int(piece.inputs[0]) for number in range(total // 50 + 1) for piece in source.pieces(number, 50)]
    assert sorted(found[: len(kept)]) == kept
    assert found[: len(kept)] != kept
    with pytest.raises(DataError, match="found none"):
        Recorded(documents=documents, max_len=1, seed=2).pieces(0, 50)


def test_conversations_are_whole_and_as_many_as_asked_for(renderer: HouseRenderer) -> None:
    """However small the share, its average is right; none is above the limit."""
    source = Conversations(example_at=SERVICE, renderer=renderer, max_len=200)
    counts = [sum(len(piece) for piece in source.pieces(chunk, 150)) for chunk in range(120)]
    assert 135 < np.mean(counts) < 165
    lengths = {len(encode(renderer, SERVICE(i)).ids) - 1 for i in range(200)}
    assert max(lengths) >= 200, "or the limit is not tested"
    pieces = [piece for chunk in range(20) for piece in source.pieces(chunk, 900)]
    assert max(len(piece) for piece in pieces) < 200
    with pytest.raises(DataError, match="at most 3 ids, 1000 in a row were longer"):
        Conversations(example_at=lambda _: SERVICE(0), renderer=renderer, max_len=3).pieces(0, 10)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_the_same_batches(world: int) -> None:
    for step in (0, 7):
        parts = [list(batches_of_step(step, 4, rank, world)) for rank in range(world)]
        assert sorted(number for part in parts for number in part) == list(range(4 * step, 4 * step + 4))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_made_ahead_it_is_the_same(stream: PackedStream, workers: int, method: str) -> None:
    """In order, after a jump back and after a jump ahead, whatever the number of processes."""
    with Prefetched(stream, workers, method) as ahead:  # type: ignore[arg-type]
        for number in (0, 1, 2, 5, 1):
            found, sought = ahead.chunk(number), stream.chunk(number)
            assert all(same(a, b) for a, b in zip(found, sought, strict=True))
    assert not ahead._workers


def test_what_is_ahead_is_not_waited_for(stream: PackedStream) -> None:
    with Prefetched(Slow()) as ahead:
        ahead.chunk(0)
        first = ahead.waited_s
        time.sleep(0.6)
        ahead.chunk(1)
        assert ahead.waited_s - first < 0.2 < first


@dataclass(frozen=True)
class Slow:
    def chunk(self, number: int) -> list[Batch]:
        time.sleep(0.3)
        return []


@dataclass(frozen=True)
class Dying:
    how: str

    def chunk(self, number: int) -> list[Batch]:
        if number == 1 and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 1:
            raise ValueError("a broken document")
        return []


@pytest.mark.parametrize(("how", "said"), [("killed", r"died \(exit code -9\)"), ("fails", "a broken document")])
def test_a_worker_that_dies_is_an_error_and_no_hang(how: str, said: str) -> None:
    with Prefetched(Dying(how)) as ahead:
        assert ahead.chunk(0) == []
        with pytest.raises(DataError, match=said):
            ahead.chunk(1)
            ahead.chunk(2)


_TRAINER = """
import sys, time
from smelt.data.prefetch import Prefetched
class Quick:
    def chunk(self, number):
        return []
if __name__ == "__main__":
    ahead = Prefetched(Quick(), 2)
    ahead.chunk(0)
    print(*(worker._process.pid for worker in ahead._workers), flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_killed_trainer() -> None:
    """A run that is killed must not leave processes behind, as it is called again at once."""
    trainer = subprocess.Popen([sys.executable, "-c", _TRAINER], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(pids) == 2
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_sources_need_weights(renderer: HouseRenderer) -> None:
    source = Conversations(example_at=SERVICE, renderer=renderer, max_len=300)
    for sources in ([], [(source, 0.0)], [(source, 1.0), (source, -1.0)]):
        with pytest.raises(DataError, match="weights of at least 0"):
            PackedStream(sources=sources, row_len=64, rows=1, pad_id=0, seed=0).chunk(0)
