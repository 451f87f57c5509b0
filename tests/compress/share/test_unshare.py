"""The plain folder a sharing model stands for, in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from smelt.checkpoint import open_checkpoint, save_checkpoint
from smelt.compress.share.unshare import unshared
from smelt.core.decoder import Family
from smelt.core.errors import UnsupportedError
from smelt.model.decoder import Decoder
from tests.model.test_sharing import LOOP, sharing
from tests.tiny import random_tensors, tiny_config


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
@torch.no_grad()
def test_transformers_computes_the_expanded_folder(tmp_path: Path, family: Family) -> None:
    config = sharing(family, LOOP, rank=3)
    tensors = random_tensors(config, 1)
    plain, expanded = unshared(config, tensors)
    assert plain == tiny_config(family, num_layers=len(LOOP)) and plain.plain
    save_checkpoint(tmp_path / "m", plain, expanded)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(2, 96, (2, 24), generator=torch.Generator().manual_seed(7))
    ours = Decoder.from_tensors(config, tensors).eval()(ids)
    assert ours.std() > 0.2
    torch.testing.assert_close(theirs.eval()(ids).logits, ours, atol=3e-4, rtol=1e-3)
    opened = open_checkpoint(tmp_path / "m")
    torch.testing.assert_close(Decoder.from_tensors(opened.config, opened.tensors)(ids), ours, atol=3e-4, rtol=1e-3)


def test_a_plain_model_stays_as_it_is() -> None:
    config = tiny_config("qwen2")
    tensors = random_tensors(config)
    plain, same = unshared(config, tensors)
    assert plain == config and list(same) == list(tensors)
    assert all(same[name] is tensors[name] for name in tensors)


def test_entry_vectors_have_no_place() -> None:
    config = sharing("llama", LOOP, entries=True)
    with pytest.raises(UnsupportedError, match="no place in a plain model"):
        unshared(config, random_tensors(config))
