"""Batches: one document a row, the loss where the assistant wrote, an order that only the seed decides."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.spark_data import EARLY, MAIN, make_tokenizer
from smelt.chat.house import HouseRenderer
from smelt.data.batches import BatchStream, Encoded, collate, encode, mixed
from smelt.data.tasks.mixture import Mixture
from smelt.tokenizer import Tokenizer

PAD = 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer({}, 800, 60, seed=1)


@pytest.fixture(scope="module")
def stream(tokenizer: Tokenizer) -> BatchStream:
    return BatchStream(
        example_at=mixed(MAIN, 3),
        renderer=HouseRenderer(tokenizer),
        pad_id=tokenizer.control_ids["<|pad|>"],
        batch_tokens=2048,
        max_len=600,
        seed=3,
        chunk_examples=40,
    )


def test_targets_are_the_next_tokens_where_the_mask_says_so() -> None:
    batch = collate([Encoded([5, 6, 7, 8], bytes([0, 0, 1, 1])), Encoded([9, 4], bytes([0, 1]))], PAD, multiple=4)
    assert batch.inputs.tolist() == [[5, 6, 7, 0], [9, 0, 0, 0]]
    assert batch.targets.tolist() == [[-100, 7, 8, -100], [4, -100, -100, -100]]
    assert batch.num_learned == 3


def test_every_row_is_one_whole_document(stream: BatchStream) -> None:
    rows = {
        tuple(token for token in row if token != stream.pad_id)
        for batch in stream.chunk(0)
        for row in batch.inputs.tolist()
    }
    encoded = [encode(stream.renderer, stream.example_at(i)) for i in range(stream.chunk_examples)]
    assert rows == {tuple(found.ids[:-1]) for found in encoded if len(found.ids) <= stream.max_len}


def test_a_chunk_depends_on_its_number_alone(stream: BatchStream) -> None:
    later = stream.chunk(2)
    stream.chunk(1)
    again = stream.chunk(2)
    assert len(later) == len(again) > 1
    for a, b in zip(later, again, strict=True):
        assert np.array_equal(a.inputs, b.inputs)
        assert np.array_equal(a.targets, b.targets)


def test_batches_keep_to_their_budget(stream: BatchStream) -> None:
    for batch in stream.chunk(0):
        rows, width = batch.inputs.shape
        assert rows == 1 or (rows * (width - 16)) <= stream.batch_tokens
        assert width <= stream.max_len + 16


def test_what_the_assistant_said_is_what_is_learned(tokenizer: Tokenizer) -> None:
    renderer = HouseRenderer(tokenizer)
    example = Mixture(weights={"service": 1}, languages={"en": 1}).example(0, 3)
    found = encode(renderer, example)
    learned = [token for token, mask in zip(found.ids, found.loss_mask, strict=True) if mask]
    said = [message.text for message in example.messages if message.role == "assistant"]
    assert tokenizer.decode([token for token in learned if token != renderer.end_id]) == "".join(said)


def test_a_share_of_the_stream_is_public_records() -> None:
    record = Mixture(weights={"talk": 1}).example(0, 0)
    example_at = mixed(EARLY, 1, {"set": [record], "empty": []}, 0.5)
    share = sum(example_at(i) == record for i in range(400)) / 400
    assert 0.4 < share < 0.6
