"""`smelt shrink` on a folder of each family as transformers writes it: the result loads there and answers in a server.

The folders are random, their tokenizers trained here and laid out as published (tests/server/foreign.py). Llama is in
the quick suite, the others are slow.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from starlette.testclient import TestClient
from typer.testing import CliRunner

from smelt.checkpoint import open_checkpoint
from smelt.cli.app import app
from smelt.compress.chain.measure import decoder_of
from smelt.generate.llm import LLM
from smelt.generate.options import LLMOptions
from smelt.server.app import create_app
from smelt.server.settings import Settings
from tests.server.foreign import CHAT_FAMILIES, make_foreign_folder

SAID: list[dict[str, str]] = [{"role": "user", "content": "What's the weather in Berlin?"}]
# What is learned and calibrated on is what the model writes of itself: no chat format and no text of ours has a part.
QUICK = ["--row-len", "32", "--rows", "2", "--train-tokens", "640", "--rounds", "0", "--json"]
QUICK += ["--set", "prune.target.of_parameters=0.75", "--set", "prune.candidates=2", "--set", "distil.steps=4"]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def shrunk(source: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """The report of a run from the command line."""
    made = CliRunner().invoke(app, ["shrink", str(source), "--out", str(out), *QUICK, *arguments])
    assert made.exit_code == 0, f"{made.exception!r}\n{made.stderr}"
    report: dict[str, Any] = json.loads(made.stdout)["report"]
    return report


def loads_in_transformers(folder: Path, source: Path) -> None:
    """No tensor is missing or left over; the logits are ours; a chat is rendered as the source renders it."""
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    info["missing_keys"] -= {"model.embed_tokens.embed_scale"}  # Gemma's constant, a tensor there and right
    assert not any(info.values()), info
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        sought = decoder_of(open_checkpoint(folder)).eval()(ids).numpy()
        np.testing.assert_allclose(theirs.eval()(ids).logits.numpy(), sought, atol=2e-3, rtol=2e-3)
    after, before = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, source))
    assert after.apply_chat_template(SAID, tokenize=False) == before.apply_chat_template(SAID, tokenize=False)


def answers(folder: Path) -> None:
    """The folder behind the application that `smelt serve` runs."""
    options = LLMOptions(threads=1, kv_bytes=1 << 23)
    with (
        contextlib.closing(LLM.load(folder, options=options)) as llm,
        TestClient(create_app(llm, Settings()), base_url="http://127.0.0.1:8000") as client,
    ):
        asked = {"model": "gpt-4o-mini", "messages": SAID, "max_tokens": 8, "temperature": 0}
        made = client.post("/v1/chat/completions", json=asked)
        assert made.status_code == 200, made.text
        told = made.json()
        assert 0 < told["usage"]["completion_tokens"] <= 8
        assert isinstance(told["choices"][0]["message"]["content"], str)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "llama3" else pytest.mark.slow) for name in CHAT_FAMILIES]
)
def test_prune_distil_and_few_bits_end_in_a_folder_that_loads_everywhere(family: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the independent reader is not installed (compressed-tensors)")
    source, out = make_foreign_folder(tmp_path / "source", family), tmp_path / "out"
    eight = shrunk(source, out, "--stages", "prune,distil,w8")
    assert [row["name"] for row in eight["rows"]] == ["source", "prune", "distil", "quantize"]
    sizes = [row["measured"]["weight_bytes"] for row in eight["rows"]]
    assert sizes[1] < 0.8 * sizes[0]
    assert sizes[3] < 0.5 * sizes[2]
    loads_in_transformers(out / "model", source)
    answers(out / "model")
    four = shrunk(source, out, "--stages", "prune,distil,w4")
    made = [row["measured"]["bits_per_byte"]["value"] for row in four["rows"]]
    assert made[:3] == [row["measured"]["bits_per_byte"]["value"] for row in eight["rows"][:3]], "made once"
    assert four["rows"][3]["measured"]["weight_bytes"] < sizes[3]
    loads_in_transformers(out / "model", source)
    answers(out / "model")
    checked = CliRunner().invoke(app, ["verify", str(out), "--json"])
    assert json.loads(checked.stdout)["sound"], checked.stdout
