"""The decoder's own promises (test_packed.py has those of packed rows): positions, fresh weights, gradients, dtypes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from smelt.checkpoint.hf_config import to_hf
from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.model.cache import KVCache
from smelt.model.decoder import Decoder
from tests.tiny import WINDOW, random_tensors, tiny_config, variants

NAMES = sorted(variants())


def built(config: DecoderConfig, seed: int = 2) -> Decoder:
    return Decoder.from_tensors(config, random_tensors(config, seed)).eval()


def some_ids(config: DecoderConfig, *shape: int) -> torch.Tensor:
    return torch.randint(2, config.vocab_size, shape, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_attention_is_relative_so_positions_may_start_anywhere() -> None:
    decoder = built(tiny_config("gemma3_text"))
    ids = some_ids(decoder.config, 2, 20)
    sought = decoder(ids)
    shifted = torch.arange(20) + torch.tensor([[5], [100]])
    torch.testing.assert_close(decoder(ids, positions=shifted), sought, atol=2e-4, rtol=1e-4)
    assert (decoder(ids, positions=torch.arange(20) * 2) - sought).abs().max() > 0.01


@torch.no_grad()
def test_logits_follow_from_hidden_in_pieces() -> None:
    decoder = built(tiny_config("qwen2"))
    ids = some_ids(decoder.config, 2, 12)
    hidden = decoder.hidden(ids)
    assert hidden.shape == (2, 12, decoder.config.hidden_size)
    pieces = torch.cat([decoder.logits(piece) for piece in hidden.flatten(0, 1).split(5)])
    torch.testing.assert_close(pieces, decoder(ids).flatten(0, 1))


# What each feature's absence would be; the logits must notice.
ABSENCES = {
    "llama-llama3": {"ropes": (RopeConfig(base=500.0),)},
    "llama-linear": {"ropes": (RopeConfig(base=1000.0),)},
    "llama-gelu": {"activation": "silu"},
    "mistral": {"layers": (LayerConfig(),) * 3},
    "qwen2-yarn-window": {"ropes": (RopeConfig(base=100.0),)},
    "qwen3-yarn-biases": {
        "ropes": (dataclasses.replace(variants()["qwen3-yarn-biases"].ropes[0], attention_factor=1.0),)
    },
    "gemma3": {"layers": (LayerConfig(rope=1), LayerConfig(), LayerConfig(rope=1))},
    "gemma3-linear": {"ropes": variants()["gemma3"].ropes},
    "gemma3-two-scalings": {"ropes": tuple(reversed(variants()["gemma3-two-scalings"].ropes))},
}


@pytest.mark.parametrize("name", sorted(ABSENCES))
@torch.no_grad()
def test_every_feature_matters_to_the_parity_test(name: str) -> None:
    """Parity within 1e-4 proves a feature only if leaving it out moves the logits by much more."""
    config = variants()[name]
    tensors, ids = random_tensors(config, 1), some_ids(config, 1, 5 * WINDOW)
    with_it = Decoder.from_tensors(config, tensors)(ids)
    without = Decoder.from_tensors(dataclasses.replace(config, **ABSENCES[name]), tensors)(ids)
    assert (with_it - without).abs().max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_transformers(name: str) -> None:
    config = variants()[name]
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_hf(config)), attn_implementation="eager")
    ours = built(config)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    ids = some_ids(config, 2, 3 * WINDOW)
    for model, logits in ((ours, ours(ids)), (theirs, theirs(ids).logits)):
        model.zero_grad()
        cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    sought = dict(theirs.named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, sought[parameter_name].grad, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2"])
def test_fresh_weights(name: str) -> None:
    """Reproducible, near-uniform first predictions, a residual stream that does not grow with depth."""
    config = dataclasses.replace(variants()[name], layers=variants()[name].layers * 8)
    decoder, again, other = Decoder(config), Decoder(config), Decoder(config)
    for model, seed in ((decoder, 5), (again, 5), (other, 6)):
        model.init_weights(seed)
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), again.parameters(), strict=True))
    assert not torch.equal(decoder.model.embed_tokens.weight, other.model.embed_tokens.weight)
    ids = some_ids(config, 4, 32)
    loss = cross_entropy(decoder(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(config.vocab_size)) < 0.5
    added = []
    for layer in decoder.model.layers:
        layer.register_forward_hook(lambda _, inputs, output: added.append((output - inputs[0]).square().mean().sqrt()))
    decoder.hidden(ids)
    total = torch.stack(added).square().sum().sqrt()
    assert 0.1 < total < 2.0, "24 layers together add about one unit, as 2 would"


def test_tensors_are_what_a_save_takes() -> None:
    config = tiny_config("qwen3")
    tensors = random_tensors(config)
    exported = Decoder.from_tensors(config, tensors).tensors()
    assert list(exported) == list(config.tensor_shapes())
    assert all((exported[name] == tensors[name]).all() for name in tensors)
    assert sum(array.size for array in exported.values()) == config.num_parameters


@pytest.mark.parametrize("name", ["gemma3", "llama-tied-biases"])
@torch.no_grad()
def test_half_precision_stays_near(name: str) -> None:
    """bfloat16 weights, and float32 weights under autocast: what training on an accelerator does."""
    decoder = built(variants()[name])
    ids = some_ids(decoder.config, 2, 3 * WINDOW)
    sought = decoder(ids)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = decoder(ids).float()
    halved = decoder.to(torch.bfloat16)(ids)
    assert halved.dtype == torch.bfloat16
    for found in (mixed, halved.float()):
        assert (found - sought).abs().mean() < 0.05 * sought.abs().mean()


def test_misuse_is_refused() -> None:
    decoder = built(tiny_config("llama"))
    ids = some_ids(decoder.config, 1, 4)
    with pytest.raises(ValueError, match="the cache holds 0 of 3 tokens, 4 more do not fit"):
        decoder(ids, cache=KVCache(decoder.config, capacity=3))
    with pytest.raises(ValueError, match="one document per row"):
        decoder(ids, cache=KVCache(decoder.config), segment_ids_BT=torch.zeros(1, 4))
