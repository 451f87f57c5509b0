"""A run that is killed at any moment and called again ends as if nothing had happened, to the bit."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

from tests.train.runs import endless, started


def fingerprint(folder: Path) -> str:
    """Of the last checkpoint's tensors: weights, momenta and average."""
    (found,) = folder.glob("state-*")
    assert found.name == "state-00000040"
    return hashlib.sha256((found / "state.safetensors").read_bytes()).hexdigest()


def num_reports(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def test_kill_9_at_three_random_points(tmp_path: Path) -> None:
    """With a checkpoint after every step many kills fall into the writing of one; what is on disk is always whole."""
    rng = random.Random(time.time_ns())  # other points every time: the claim is about any
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    undisturbed = started(endless, str(whole))
    for steps in (5, 14, 25):
        process = started(endless, str(pieces))
        deadline = time.monotonic() + 60
        while num_reports(pieces) < steps and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        process.kill()
        process.join()
        assert process.exitcode == -9, "it was over before it was killed"
        assert len(list(pieces.glob("state-*"))) >= 1
    last = started(endless, str(pieces))
    for process in (last, undisturbed):
        process.join(60)
        assert process.exitcode == 0
    assert fingerprint(pieces) == fingerprint(whole)
    assert num_reports(pieces) == 40, "steps taken twice are reported once"
    assert not list(pieces.glob(".staging-*")), "what a kill left half written is gone"
