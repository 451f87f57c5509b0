"""Objectives over whole batches: only learned tokens count, padding changes nothing, a first token may weigh more."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.objectives import CrossEntropy, first_of_span, mean_loss
from tests.tiny import tiny_config

CPU = torch.device("cpu")


def model() -> Decoder:
    found = Decoder(tiny_config("gemma3_text"))
    found.init_weights(0)
    return found


def batch(rows: int = 3) -> Batch:
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(0, 96, (2, 3, 20))
    targets[0, :15] = -100
    targets[2] = -100
    return Batch(inputs[:rows], targets[:rows])


def test_cross_entropy_equals_that_of_whole_logits() -> None:
    decoder, rows = model(), batch()
    logits = decoder(torch.from_numpy(rows.inputs)).flatten(0, 1)
    whole = F.cross_entropy(logits, torch.from_numpy(rows.targets).flatten(), ignore_index=-100, reduction="sum")
    sought = torch.autograd.grad(whole, list(decoder.parameters()))
    found = CrossEntropy()(decoder, rows, CPU)
    assert found.count == 25
    assert torch.allclose(found.total, whole, rtol=1e-5)
    for gradient, expected in zip(torch.autograd.grad(found.total, list(decoder.parameters())), sought, strict=True):
        assert torch.allclose(gradient, expected, atol=1e-4)


def test_masked_tokens_contribute_nothing() -> None:
    """A row without targets changes neither the sum nor a gradient."""
    decoder = model()
    with_row, without = CrossEntropy()(decoder, batch(3), CPU), CrossEntropy()(decoder, batch(2), CPU)
    assert with_row.count == without.count
    pairs = (torch.autograd.grad(found.total, list(decoder.parameters())) for found in (with_row, without))
    for a, b in zip(*pairs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_padding_on_the_right_changes_nothing() -> None:
    """Why rows of one batch may have different lengths without a mask."""
    decoder, rows = model(), batch()
    padded = Batch(
        np.pad(rows.inputs, ((0, 0), (0, 9)), constant_values=1),
        np.pad(rows.targets, ((0, 0), (0, 9)), constant_values=-100),
    )
    plain, wider = (CrossEntropy()(decoder, found, CPU).total for found in (rows, padded))
    assert torch.allclose(plain, wider, rtol=1e-5)


def test_mean_is_per_counted_token() -> None:
    decoder = model()
    found = mean_loss(decoder, [batch(3), batch(1)], CPU)
    total = sum(CrossEntropy()(decoder, batch(n), CPU).total.item() for n in (3, 1))
    assert abs(found - total / 30) < 1e-4


def test_first_tokens_of_spans_and_documents() -> None:
    targets = np.array([[-100, 5, 6, -100, 7, 8], [1, 2, 3, 4, 5, -100]])
    segments = np.array([[0] * 6, [0, 0, 1, 1, 1, -1]], dtype=np.int32)
    first = [[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert first_of_span(Batch(targets, targets)).astype(int).tolist() == first
    first[1][2] = 1
    assert first_of_span(Batch(targets, targets, segment_ids=segments)).astype(int).tolist() == first


def test_a_first_token_of_weight_three_is_that_token_three_times() -> None:
    decoder, rows = model(), batch()
    only_first = Batch(rows.inputs, np.where(first_of_span(rows), rows.targets, -100))
    plain, weighted, first = (
        objective(decoder, found, CPU)
        for objective, found in (
            (CrossEntropy(), rows), (CrossEntropy(first_weight=3.0), rows), (CrossEntropy(), only_first)
        )
    )  # fmt: skip
    assert (plain.count, first.count, weighted.count) == (25, 2, 29)
    assert torch.allclose(weighted.total, plain.total + 2 * first.total, rtol=1e-5)
