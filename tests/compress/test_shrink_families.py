"""The default chain on a folder of each family as transformers writes it: its result loads there and in our server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from smelt.checkpoint import open_checkpoint
from smelt.compress.chain.material import MaterialSettings
from smelt.compress.chain.measure import MeasureSettings
from smelt.compress.chain.run import Watch
from smelt.compress.chain.speed import SpeedSettings
from smelt.compress.chain.verify import verify
from smelt.compress.shrink import ShrinkSettings, ShrinkWatch, Shrunk, shrink
from smelt.compress.words import DEFAULT
from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.generate.llm import LLM
from smelt.model.decoder import Decoder
from tests.server.foreign import CHAT_FAMILIES, make_foreign_folder

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


def shrunk(family: str, folder: Path, stages: tuple[str, ...]) -> Shrunk:
    """Material: what the model writes of itself, so no chat format and no text of ours has a part in it."""
    settings = ShrinkSettings(
        model=str(make_foreign_folder(folder / "source", family)),
        stages=stages,
        changes=("distil.steps=4", "prune.candidates=2", "prune.target.of_parameters=0.75"),
        material=MaterialSettings(row_len=32, rows=2, train_tokens=640, held_out_rows=4, calibration=6),
        measuring=MeasureSettings(speed=SpeedSettings(rounds=1, threads=1)),
    )
    quiet = Watch(say=lambda _: None)
    return shrink(settings, folder / "out", ShrinkWatch(chain=quiet))


def logits(folder: Path, ids: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Transformers' own reading of the folder, and ours."""
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    info["missing_keys"] -= {"model.embed_tokens.embed_scale"}  # Gemma's constant, a tensor there and right
    assert not any(info.values()), info
    opened = open_checkpoint(folder)
    ours = Decoder.from_tensors(opened.config, opened.tensors).eval()
    with torch.no_grad():
        return theirs.eval()(ids).logits.numpy(), ours(ids).numpy()


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_the_default_chain_runs_and_its_result_loads_everywhere(family: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the independent reader is not installed (compressed-tensors)")
    made = shrunk(family, tmp_path, DEFAULT)
    assert made.folder is not None
    names = [row["name"] for row in made.report["rows"]]
    assert names == ["source", *DEFAULT]
    parameters = [row["measured"]["parameters"] for row in made.report["rows"]]
    assert parameters[1] < 0.8 * parameters[0]
    assert all(row["measured"]["decode_tok_s"]["value"] > 0 for row in made.report["rows"])
    assert verify(tmp_path / "out").sound
    ids = torch.arange(3, 27)[None]
    theirs, ours = logits(made.folder, ids)
    np.testing.assert_allclose(theirs, ours, atol=2e-3, rtol=2e-3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.folder)
    said = [{"role": "user", "content": "What's the weather in Berlin?"}]
    before = transformers.AutoTokenizer.from_pretrained(tmp_path / "source")
    assert tokenizer.apply_chat_template(said, tokenize=False) == before.apply_chat_template(said, tokenize=False)
    llm = LLM.load(made.folder)
    try:
        asked = ChatRequest(
            messages=(Message.of("user", "What's the weather in Berlin?"),),
            params=SamplingParams(temperature=0.0, max_tokens=8),
        )
        assert llm.chat(asked).usage.completion_tokens > 0
    finally:
        llm.close()
