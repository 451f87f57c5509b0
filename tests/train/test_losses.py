"""The loss in pieces equals the loss at once, gradients too, and only learned tokens count."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from smelt.model.decoder import Decoder
from smelt.train.losses import cross_entropy_sum, mean_loss
from tests.tiny import tiny_config


def model() -> Decoder:
    found = Decoder(tiny_config("gemma3_text"))
    found.init_weights(0)
    return found


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 96, (3, 20), generator=generator)
    targets = torch.randint(0, 96, (3, 20), generator=generator)
    targets[0, :15] = -100
    targets[2] = -100
    return inputs, targets


def test_pieces_equal_the_whole() -> None:
    inputs, targets = batch()
    decoder = model()
    whole = F.cross_entropy(decoder(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    expected = torch.autograd.grad(whole, list(decoder.parameters()))
    for piece in (3, 7, 1000):
        loss = cross_entropy_sum(decoder, inputs, targets, piece)
        assert torch.allclose(loss, whole, rtol=1e-5)
        for found, sought in zip(torch.autograd.grad(loss, list(decoder.parameters())), expected, strict=True):
            assert torch.allclose(found, sought, atol=1e-4)


def test_mean_is_per_learned_token() -> None:
    inputs, targets = batch()
    decoder = model()
    found = mean_loss(decoder, [(inputs, targets), (inputs[:1], targets[:1])])
    first, second = (cross_entropy_sum(decoder, inputs[:n], targets[:n]).item() for n in (3, 1))
    total = first + second
    assert abs(found - total / (25 + 5)) < 1e-4


def test_padding_on_the_right_changes_nothing() -> None:
    """Why rows of one batch may have different lengths without a mask."""
    inputs, targets = batch()
    padded_inputs, padded_targets = F.pad(inputs, (0, 9), value=1), F.pad(targets, (0, 9), value=-100)
    decoder = model()
    assert torch.allclose(
        cross_entropy_sum(decoder, inputs, targets),
        cross_entropy_sum(decoder, padded_inputs, padded_targets),
        rtol=1e-5,
    )
