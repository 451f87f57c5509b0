"""A chain that is killed at any moment, three times, ends with the bytes of one that was left alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from smelt.compress.chain.store import artifact_of
from tests.compress.chain.fakes import killable, small_source
from tests.train.runs import started

SIGNS = ("scaled-*/computed", "distil-*/scratch/run/metrics.jsonl", "quantize-*/scratch")
"""What shows that a stage is at work: each is killed in its turn."""


@pytest.mark.slow
def test_kill_9_at_three_random_points(tmp_path: Path) -> None:
    source = small_source(tmp_path / "source", num_layers=2, hidden_size=32)
    rng = random.Random(time.time_ns())  # other points every time: the claim is about any
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    undisturbed = started(killable, str(source), str(whole), 0.0)
    undisturbed.join(60)
    assert undisturbed.exitcode == 0
    for sign in SIGNS:
        process = started(killable, str(source), str(pieces), 0.1)
        deadline = time.monotonic() + 60
        while not list(pieces.glob(f"stages/{sign}")) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.3)
        process.kill()
        process.join()
        assert process.exitcode == -9, "it was over before it was killed"
    last = started(killable, str(source), str(pieces), 0.0)
    last.join(60)
    assert last.exitcode == 0
    assert (pieces / "final").read_text() == (whole / "final").read_text()
    for one, other in zip(*(sorted(folder.glob("stages/*/out")) for folder in (whole, pieces)), strict=True):
        assert one.parent.name == other.parent.name
        assert artifact_of(one).hash == artifact_of(other).hash
