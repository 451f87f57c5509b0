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
from smelt.core.messages import Message, Privilege
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.engine.torch_runner import TorchRunner
from smelt.generate.events import AnswerText
from smelt.generate.llm import LLM
from smelt.generate.options import LLMOptions
from smelt.model.cache import KVCache
from smelt.model.decoder import PRIVILEGES, Decoder
from smelt.native import NativeRunner
from tests.engine.test_torch_runner import make_batch
from tests.tiny import make_tiny_folder, random_tensors, tiny_config, tiny_tokenizer_files

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


@torch.no_grad()
@pytest.mark.parametrize("chunk_len", [8, 3])
def test_the_native_core_adds_it(chunk_len: int) -> None:
    tensors = random_tensors(CONFIG, 4)
    runner = NativeRunner(CONFIG, tensors, weights="fp32", num_blocks=2, num_threads=1)
    found = []
    for start in range(0, 8, chunk_len):
        chunk = slice(start, min(8, start + chunk_len))
        batch = make_batch([(IDS[0, chunk].tolist(), start)], [[0]])
        batch.privileges = SAID[0, chunk].numpy()
        found.append(runner.logits(batch))
    sought = built()(IDS, privileges_BT=SAID)[0].numpy()
    np.testing.assert_allclose(np.concatenate(found), sought, atol=1e-4)


def test_the_native_core_refuses_a_step_without_privileges_and_a_table_without_rows() -> None:
    tensors = random_tensors(CONFIG, 4)
    runner = NativeRunner(CONFIG, tensors, num_blocks=2, num_threads=1)
    batch = make_batch([(IDS[0].tolist(), 0)], [[0]])
    with pytest.raises(EngineError, match="privileges has 0 entries; sought 8"):
        runner.step(batch)
    batch.privileges = np.full(8, 6, np.uint8)
    with pytest.raises(EngineError, match=r"privileges\[0\] is 6; sought below 6"):
        runner.step(batch)
    with pytest.raises(EngineError, match=f"tensor {PRIVILEGES} is missing"):
        NativeRunner(CONFIG, {n: t for n, t in tensors.items() if n != PRIVILEGES}, num_blocks=2)
    wrong = {**tensors, PRIVILEGES: np.full((6, CONFIG.hidden_size), np.nan, np.float32)}
    with pytest.raises(EngineError, match="NaN"):
        NativeRunner(CONFIG, wrong, num_blocks=2)


def test_a_served_model_hears_who_speaks(tmp_path: Path) -> None:
    """The same words said by others are another prompt to a model with a table, through the whole engine."""
    folder = make_tiny_folder(tmp_path / "m", num_privileges=6)
    raised = {**open_checkpoint(folder).tensors}
    raised[PRIVILEGES] = raised[PRIVILEGES] * 20
    plain = {**raised, PRIVILEGES: raised[PRIVILEGES] * 0}
    files, _ = tiny_tokenizer_files()
    answers = []
    for name, tensors in (("raised", raised), ("plain", plain)):
        save_checkpoint(tmp_path / name, open_checkpoint(folder).config, tensors, files=files)
        llm = LLM.load(tmp_path / name, options=LLMOptions(threads=1, weights="fp32"))
        try:
            prepared = llm.prepare(
                ChatRequest(messages=(Message.of("user", "hi"),), params=SamplingParams(temperature=0.0, max_tokens=16))
            )
            said = [prepared.privileges, bytes(len(prepared.privileges))]
            replies = [list(llm.events(dataclasses.replace(prepared, privileges=one))) for one in said]
            answers.append(["".join(e.text for e in reply if isinstance(e, AnswerText)) for reply in replies])
        finally:
            llm.close()
    assert answers[0][0] != answers[0][1]
    assert answers[1][0] == answers[1][1]


def test_parameters_are_counted() -> None:
    plain = dataclasses.replace(CONFIG, num_privileges=0)
    assert CONFIG.num_parameters - plain.num_parameters == 6 * CONFIG.hidden_size
