"""Longer contexts: the base turns slower where everything is seen and nowhere else, and memory grows with T alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from smelt.core.decoder import RopeConfig
from smelt.core.errors import InvalidRequestError, UnsupportedError
from smelt.data.packing import Piece
from smelt.model.decoder import Decoder
from smelt.train.long_context import JoinedTexts, LongTasks, stretched
from tests.tiny import random_tensors, tiny_config, variants

BENCH = Path(__file__).resolve().parents[2] / "bench" / "long_finetune.py"


def test_only_global_layers_get_the_new_base() -> None:
    config = tiny_config("gemma3_text")
    found = stretched(config, 8192, 5e6)
    assert found.ropes == (RopeConfig(base=5e6), config.ropes[1])
    assert found.layers == config.layers
    assert dataclasses.replace(found, context_len=256, ropes=config.ropes) == config


@torch.no_grad()
def test_the_same_base_changes_nothing() -> None:
    config = tiny_config("gemma3_text")
    tensors, ids = random_tensors(config, 1), torch.arange(2, 40)[None]
    plain = Decoder.from_tensors(config, tensors)(ids)
    assert torch.equal(Decoder.from_tensors(stretched(config, 4096, 1e6), tensors)(ids), plain)
    assert not torch.equal(Decoder.from_tensors(stretched(config, 4096, 8e6), tensors)(ids), plain)


def test_what_cannot_be_stretched_is_refused() -> None:
    config = tiny_config("gemma3_text")
    with pytest.raises(InvalidRequestError, match="the model already has 256"):
        stretched(config, 128, 5e6)
    with pytest.raises(InvalidRequestError, match="rope_base is 1000"):
        stretched(config, 512, 1e3)
    with pytest.raises(UnsupportedError, match="share"):
        stretched(variants()["qwen2-yarn-window"], 4096, 5e6)
    with pytest.raises(UnsupportedError, match="'llama3'"):
        stretched(variants()["llama-llama3"], 4096, 5e6)


def test_long_tasks_are_the_same_every_time_and_of_all_lengths() -> None:
    tasks = LongTasks(seed=1, min_len=100, max_len=1600, languages=("en",))
    found = [tasks.at(i) for i in range(24)]
    assert found == [tasks.at(i) for i in range(24)]
    sizes = sorted(sum(len(message.text) for message in one.messages) for one in found)
    assert sizes[0] < 1000
    assert sizes[-1] > 3000


@dataclass(frozen=True)
class _Texts:
    """Ten-token documents that count up."""

    def pieces(self, chunk: int, num_tokens: int) -> list[Piece]:
        places = np.arange(num_tokens, dtype=np.int64)
        said = np.full(num_tokens, 3, np.uint8)
        return [Piece(places[i : i + 10], places[i : i + 10] + 1, said[i : i + 10]) for i in range(0, num_tokens, 10)]


def test_joined_texts_are_whole_documents_of_one_length() -> None:
    source = JoinedTexts(texts=_Texts(), document_len=40)  # type: ignore[arg-type]
    found = source.pieces(0, 100)
    assert [len(piece) for piece in found] == [40, 40]
    assert np.concatenate([piece.inputs for piece in found]).tolist() == list(range(80))
    assert source.pieces(0, 10) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_memory_of_a_step_grows_with_length_and_not_its_square(method: str) -> None:
    """A [T, T] tensor of float32 at 8,192 tokens would take 256 MiB a head; logits of a row 128 MiB."""

    def peak(num_tokens: int) -> float:
        command = [sys.executable, str(BENCH), "--len", str(num_tokens), "--method", method, "--limit-gb", "12"]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=110)
        found = json.loads(run.stdout.splitlines()[-1])
        return float(found["peak_rss_gb"] - found["rss_before_gb"])

    half, whole = peak(4096), peak(8192)
    assert whole < 2.3 * half
    assert whole < 1.5
