"""How alike layers are, against the formulas as published."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smelt.compress.calibration import Calibration
from smelt.compress.share.similarity import activation_cka, cka, weight_cosines
from smelt.core.decoder import MATRICES
from smelt.core.errors import InvalidRequestError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from tests.tiny import random_tensors, tiny_config


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_is_the_formula_and_sees_no_rotation_and_no_scale() -> None:
    """Kornblith et al. 2019, equation 3 in features: |Y'X|^2 / (|X'X| |Y'Y|), columns centred."""
    one, other = features(40, 6), features(40, 6, seed=1)
    x, y = one - one.mean(0), other - other.mean(0)
    sought = (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    turned = 3.0 * one @ torch.linalg.qr(features(6, 6, seed=2)).Q + 5.0
    found = cka([one, other, turned])
    assert found[0, 1] == pytest.approx(float(sought))
    assert found[0, 2] == pytest.approx(1.0) and found[1, 2] == pytest.approx(float(sought))
    assert np.allclose(found, found.T) and np.allclose(np.diagonal(found), 1.0)


def test_weight_cosines() -> None:
    config = tiny_config("llama", num_layers=4)
    tensors = random_tensors(config)
    for stem in MATRICES:
        for layer, (source, scale) in {1: (0, 2.0), 3: (2, -1.0)}.items():
            name = f"model.layers.{{}}.{stem}_proj.weight"
            tensors[name.format(layer)] = scale * tensors[name.format(source)]
    found = weight_cosines(config, tensors)
    assert found[0, 1] == pytest.approx(1.0) and found[2, 3] == pytest.approx(-1.0)
    assert abs(found[0, 2]) < 0.1
    assert np.allclose(found, found.T) and np.allclose(np.diagonal(found), 1.0)


@torch.no_grad()
def test_activation_cka_compares_what_layers_add_at_real_tokens() -> None:
    config = tiny_config("gemma3_text", num_layers=3)
    model = Decoder.from_tensors(config, random_tensors(config)).eval()
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 96, (2, 13))
    segments = np.where(np.arange(12) < 9, 0, -1) * np.ones((2, 1), np.int64)

    def calibration(inputs: np.ndarray) -> Calibration:
        batch = Batch(inputs, ids[:, 1:], segments)
        return Calibration(source="noise", digest="", batches=(batch, batch))

    found = activation_cka(model, calibration(ids[:, :-1]))
    added: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, inputs, output: added.append((output - inputs[0])[:, :9].flatten(0, 1)))
    model.hidden(torch.from_numpy(ids[:, :-1]), segment_ids_BT=torch.from_numpy(segments))
    np.testing.assert_allclose(found, cka([part.double() for part in added]), atol=1e-5)
    assert found[0, 1] < 0.99
    padded = ids[:, :-1].copy()
    padded[:, 9:] = 3
    np.testing.assert_allclose(activation_cka(model, calibration(padded)), found, atol=1e-6)
    few = activation_cka(model, calibration(ids[:, :-1]), num_tokens=8)
    assert few.shape == (3, 3) and not np.allclose(few, found, atol=1e-3)
    with pytest.raises(InvalidRequestError, match="sought tokens to compare layers on, found 0: nowhere"):
        activation_cka(model, Calibration(source="nowhere", digest="", batches=()))
