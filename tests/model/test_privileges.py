"""Privilege embeddings: zero changes nothing, the table is learned, runners add it, and other readers refuse it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from smelt.checkpoint import open_checkpoint, save_checkpoint
from smelt.checkpoint.hf_config import from_hf, to_hf
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError, EngineError, UnsupportedError
from smelt.core.messages import Privilege
from smelt.engine.torch_runner import TorchRunner
from smelt.model.cache import KVCache
from smelt.model.decoder import PRIVILEGES, Decoder
from smelt.native import NativeRunner
from tests.engine.test_torch_runner import make_batch
from tests.tiny import random_tensors, tiny_config

CONFIG = tiny_config("gemma3_text", num_privileges=len(Privilege))
IDS = torch.tensor([[3, 17, 40, 41, 8, 90, 12, 5]])
SAID = torch.tensor([[0, 0, 2, 2, 2, 5, 5, 3]], dtype=torch.uint8)


def built(config: DecoderConfig = CONFIG) -> Decoder:
    return Decoder.from_tensors(config, random_tensors(config, 4)).eval()


@torch.no_grad()
def test_a_table_of_zeros_is_the_plain_model_to_the_bit() -> None:
    plain = Decoder(tiny_config("gemma3_text"))
    variant = Decoder(CONFIG)
    plain.init_weights(5)
    variant.init_weights(5)
    assert torch.equal(variant(IDS, privileges_BT=SAID), plain(IDS))
    assert not variant.get_parameter(PRIVILEGES).any()


@torch.no_grad()
def test_who_said_a_token_reaches_what_comes_after_it_and_nothing_before() -> None:
    decoder = built()
    raised = SAID.clone()
    raised[0, 5] = Privilege.SYSTEM
    change = (decoder(IDS, privileges_BT=raised) - decoder(IDS, privileges_BT=SAID)).abs().amax(-1)[0]
    assert not change[:5].any()
    assert (change[5:] > 1e-4).all()


def test_the_table_is_trained() -> None:
    decoder = built()
    decoder(IDS, privileges_BT=SAID).square().sum().backward()
    gradient = decoder.get_parameter(PRIVILEGES).grad
    assert gradient is not None
    used = sorted(set(SAID.flatten().tolist()))
    assert [row for row in range(len(Privilege)) if gradient[row].any()] == used


@torch.no_grad()
def test_cached_steps_equal_one_pass() -> None:
    decoder = built()
    cache = KVCache(CONFIG, capacity=8)
    parts = [
        decoder(IDS[:, part], privileges_BT=SAID[:, part], cache=cache)
        for part in (slice(0, 5), slice(5, 6), slice(6, 8))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), decoder(IDS, privileges_BT=SAID))


@pytest.mark.parametrize(("config", "said"), [(CONFIG, None), (tiny_config("gemma3_text"), SAID)])
def test_privileges_that_do_not_match_the_model_are_refused(config: DecoderConfig, said: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="sought privileges to match"):
        built(config)(IDS, privileges_BT=said)


def test_a_folder_keeps_the_table_and_other_readers_refuse_it_by_name(tmp_path: Path) -> None:
    """transformers drops a tensor it does not know with a warning: so the model_type must be one it does not know."""
    tensors = random_tensors(CONFIG, 4)
    save_checkpoint(tmp_path / "m", CONFIG, tensors)
    opened = open_checkpoint(tmp_path / "m")
    assert opened.config == CONFIG
    assert np.array_equal(opened.tensors[PRIVILEGES], tensors[PRIVILEGES])
    with pytest.raises(ValueError, match="smelt_gemma3_text"):
        AutoConfig.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_every_family_may_have_one(family: str) -> None:
    config = tiny_config(family, num_privileges=6)  # type: ignore[arg-type]
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


def test_a_config_with_too_few_privileges_or_a_plain_name_is_refused() -> None:
    document = to_hf(CONFIG)
    with pytest.raises(CheckpointError, match="num_privileges must be a whole number 6"):
        from_hf(document | {"num_privileges": 5})
    plain = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    with pytest.raises(UnsupportedError, match="num_privileges"):
        from_hf(document | plain)


@torch.no_grad()
def test_the_torch_runner_adds_it() -> None:
    tensors = random_tensors(CONFIG, 4)
    runner = TorchRunner(CONFIG, tensors, num_blocks=4, block_size=4)
    batch = make_batch([(IDS[0].tolist(), 0)], [[0, 1]], score=True, top_k=0)
    batch.privileges = SAID[0].numpy()
    scored = runner.step(batch).scored_logprobs[:-1]
    logprobs = built()(IDS, privileges_BT=SAID).log_softmax(-1)[0]
    sought = logprobs[:-1].gather(1, IDS[0, 1:, None])[:, 0].numpy()
    np.testing.assert_allclose(scored, sought, atol=1e-5)
    batch.privileges = None
    with pytest.raises(EngineError, match="a privilege below 6"):
        runner.step(batch)


def test_the_native_core_refuses_it_by_name() -> None:
    with pytest.raises(UnsupportedError, match="num_privileges = 6"):
        NativeRunner(CONFIG, random_tensors(CONFIG, 4), num_blocks=2)


def test_parameters_are_counted() -> None:
    plain = dataclasses.replace(CONFIG, num_privileges=0)
    assert CONFIG.num_parameters - plain.num_parameters == 6 * CONFIG.hidden_size
