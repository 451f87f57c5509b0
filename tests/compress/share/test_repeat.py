"""A deeper model of the same parameters."""

from __future__ import annotations

import pytest
import torch

from smelt.compress.share.patterns import Adjacent, Loop
from smelt.compress.share.repeat import repeated
from smelt.core.errors import InvalidRequestError
from smelt.model.decoder import Decoder
from tests.model.test_sharing import SHARING
from tests.tiny import random_tensors, tiny_config


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
@torch.no_grad()
def test_it_runs_the_layers_in_that_order(family: str) -> None:
    config = tiny_config(family, num_layers=4)  # type: ignore[arg-type]
    tensors = random_tensors(config, 1)
    order = Loop(times=2).order(4)
    deeper, arrays = repeated(config, tensors, order, entry_bias=True)
    assert deeper.layers[3].weights == 1 and deeper.layers[3].entry_bias and not deeper.layers[1].entry_bias
    matrices = sum(rows * cols for rows, cols in config.matrix_shapes().values())
    assert deeper.num_parameters - config.num_parameters < matrices, "norms, biases and entries alone were added"
    model, ids = Decoder.from_tensors(config, tensors), torch.arange(2, 32)[None]
    x, views = model.entered(ids)
    for layer in order:
        x = model.model.layers[layer](x, views[layer])
    sought = model.logits(model.model.norm(x))
    torch.testing.assert_close(Decoder.from_tensors(deeper, arrays)(ids), sought)


@pytest.mark.parametrize("pattern", [Loop(times=1), Adjacent(times=1)])
def test_once_is_the_model_itself(pattern: Loop | Adjacent) -> None:
    config = tiny_config("llama", num_layers=3)
    tensors = random_tensors(config)
    same, arrays = repeated(config, tensors, pattern.order(3), entry_bias=True)
    assert same == config and all(arrays[name] is tensors[name] for name in tensors)


def test_what_cannot_be_repeated_is_refused() -> None:
    config = tiny_config("llama", num_layers=3)
    for order in ((0, 1), (0, 1, 2, 3), ()):
        with pytest.raises(InvalidRequestError, match="each of layers 0 to 2, all of them"):
            repeated(config, {}, order)
    with pytest.raises(InvalidRequestError, match="share their matrices already"):
        repeated(SHARING["llama-adjacent"], {}, range(4))
