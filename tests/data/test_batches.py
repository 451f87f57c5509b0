"""A conversation as ids: the loss where the assistant wrote, who said what, and an example that is always the same."""

from __future__ import annotations

import numpy as np

from recipes.spark_data import EARLY
from smelt.chat.house import HouseRenderer
from smelt.core.messages import Privilege
from smelt.data.batches import Batch, encode, mixed
from smelt.data.tasks.mixture import Mixture
from tests.data.corpora import tiny_tokenizer


def test_what_the_assistant_said_is_what_is_learned() -> None:
    tokenizer = tiny_tokenizer()
    renderer = HouseRenderer(tokenizer)
    example = Mixture(weights={"service": 1}, languages={"en": 1}).example(0, 3)
    found = encode(renderer, example)
    learned = [token for token, mask in zip(found.ids, found.loss_mask, strict=True) if mask]
    said = [message.text for message in example.messages if message.role == "assistant"]
    assert tokenizer.decode([token for token in learned if token != renderer.end_id]) == "".join(said)
    speakers = [who for who, mask in zip(found.privileges, found.loss_mask, strict=True) if mask]
    assert set(speakers) == {Privilege.ASSISTANT}


def test_a_share_of_the_stream_is_public_records() -> None:
    record = Mixture(weights={"talk": 1}).example(0, 0)
    example_at = mixed(EARLY, 1, {"set": [record], "empty": []}, 0.5)
    share = sum(example_at(i) == record for i in range(400)) / 400
    assert 0.4 < share < 0.6
    assert example_at(7) == example_at(7)


def test_a_batch_counts_its_tokens() -> None:
    inputs = np.ones((2, 3), np.int64)
    targets = np.array([[5, -100, 6], [0, -100, -100]])
    assert Batch(inputs, targets).num_learned == 3
    assert Batch(inputs, targets).num_tokens == 6
    assert Batch(inputs, targets, np.array([[0, 0, 1], [0, -1, -1]], np.int32)).num_tokens == 4
