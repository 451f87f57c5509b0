"""The chain as a recipe, in seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from recipes.shrink import make, recipe
from smelt.checkpoint import open_checkpoint
from smelt.compress.chain.gates import Gates
from smelt.compress.chain.verify import verify
from smelt.core.errors import TrainingError
from smelt.train.recipe import Workshop, with_settings
from tests.compress.chain.fakes import small_source


def test_a_smoke_run_makes_a_folder_and_a_failing_gate_none(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source = small_source(tmp_path / "source")
    settings = with_settings(recipe.smoke, [f"model={source}", "gates.max_bytes=1000000"])
    folder = make(settings, Workshop(out=tmp_path / "out", say=lambda _: None))
    assert folder == tmp_path / "out" / "model"
    assert open_checkpoint(folder).scheme is not None
    assert verify(tmp_path / "out").sound
    tight = dataclasses.replace(settings, gates=Gates(max_bytes=100))
    with pytest.raises(TrainingError, match="max_bytes failed"):
        make(tight, Workshop(out=tmp_path / "tight", say=lambda _: None))
    assert (tmp_path / "tight" / "report.html").is_file()
    assert not (tmp_path / "tight" / "model").exists()
