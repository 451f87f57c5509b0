"""The slow twin of the decoder is transformers: same folder, same logits, for every family and feature."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from smelt.checkpoint import open_checkpoint, save_checkpoint
from smelt.core.decoder import DecoderConfig
from smelt.model.cache import KVCache
from smelt.model.decoder import Decoder
from tests.tiny import WINDOW, random_tensors, variants

NUM_TOKENS = 5 * WINDOW  # far past the window's edge, and past the llama3 and YaRN bands' first wavelengths
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=sorted(variants()))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, PreTrainedModel]:
    """Ours and theirs, both loaded from the folder we saved."""
    config = variants()[request.param]
    folder = tmp_path_factory.mktemp("parity") / request.param
    save_checkpoint(folder, config, random_tensors(config, seed=1))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    opened = open_checkpoint(folder)
    return Decoder.from_tensors(opened.config, opened.tensors).eval(), theirs


def token_ids(config: DecoderConfig, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(2, config.vocab_size, (batch, NUM_TOKENS), generator=generator)


@torch.no_grad()
def test_prefill_equals_transformers(pair: tuple[Decoder, PreTrainedModel]) -> None:
    ours, theirs = pair
    ids = token_ids(ours.config)
    sought = theirs(ids).logits
    assert sought.std() > 0.2, "a model this flat would prove nothing"
    assert (ours(ids) - sought).abs().max() < TOLERANCE


@torch.no_grad()
def test_cached_decode_equals_transformers(pair: tuple[Decoder, PreTrainedModel]) -> None:
    """A prompt in two chunks, then token by token over the window's edge, against one uncached pass."""
    ours, theirs = pair
    ids = token_ids(ours.config)
    sought = theirs(ids).logits
    cache = KVCache(ours.config, batch=2, capacity=NUM_TOKENS)
    pieces = [ids[:, :3], ids[:, 3 : WINDOW - 2], *ids[:, WINDOW - 2 :].split(1, dim=1)]
    found = torch.cat([ours(piece, cache=cache) for piece in pieces], dim=1)
    assert cache.length == NUM_TOKENS
    assert (found - sought).abs().max() < TOLERANCE


@torch.no_grad()
def test_cached_decode_equals_transformers_own_cache(pair: tuple[Decoder, PreTrainedModel]) -> None:
    ours, theirs = pair
    ids = token_ids(ours.config, batch=1)
    cache, past = KVCache(ours.config, capacity=NUM_TOKENS), None
    for piece in (ids[:, :10], *ids[:, 10:20].split(1, dim=1)):
        answer = theirs(piece, past_key_values=past, use_cache=True)
        past = answer.past_key_values
        assert (ours(piece, cache=cache) - answer.logits).abs().max() < TOLERANCE
