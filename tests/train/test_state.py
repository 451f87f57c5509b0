"""Checkpoints on disk: whole or not there, locked while a run writes them, clear about what went wrong."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from smelt.core.errors import CheckpointError
from smelt.train.state import Position, load, locked, save
from tests.train.runs import started


def tensors(seed: int = 0, size: int = 1000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(size, generator=generator), "b.c": torch.randn(3, 4, generator=generator)}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    position = Position(step=3, stage=1, chunk=2, batch=5, num_tokens=99, elapsed_s=1.5, plan={"settled": True})
    save(tmp_path, tensors(), position, "me")
    found = load(tmp_path, "me")
    assert found is not None
    assert found[1] == position
    assert all(torch.equal(found[0][name], tensor) for name, tensor in tensors().items())
    assert load(tmp_path / "empty", "me") is None


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, tensors(step), Position(step=step), "me")
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000010"]


def test_saving_a_step_again_never_takes_the_whole_one_away(tmp_path: Path) -> None:
    """It once removed the checkpoint before putting the new one there: a kill in between left none."""
    save(tmp_path, tensors(), Position(step=4), "me")
    before = (tmp_path / "state-00000004").stat().st_ino
    save(tmp_path, tensors(), Position(step=4), "me")
    assert (tmp_path / "state-00000004").stat().st_ino == before


def fill_up(folder: str, told: str) -> None:
    """Body of a process whose files may not grow past 20 kB, which is what a full disk looks like to a writer."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(Path(folder), tensors(), Position(step=1), "me")
    try:
        save(Path(folder), tensors(1, size=100_000), Position(step=2), "me")
    except CheckpointError as error:
        Path(told).write_text(str(error))


def test_a_full_disk_is_told_and_the_last_checkpoint_stays_whole(tmp_path: Path) -> None:
    process = started(fill_up, str(tmp_path / "run"), str(tmp_path / "told"))
    process.join(60)
    words = (tmp_path / "told").read_text()
    assert "step 2 could not be written" in words
    assert "0.4 MB" in words
    assert "state-00000001 is whole" in words
    assert str(tmp_path) not in words
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["state-00000001"]
    found = load(tmp_path / "run", "me")
    assert found is not None
    assert torch.equal(found[0]["a"], tensors()["a"])


def hold(folder: str, seconds: float) -> None:
    """Body of a process that trains, and forks a worker that lives on."""
    with locked(Path(folder)):
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(seconds,)).start()
        (Path(folder) / "held").touch()
        time.sleep(seconds)


def test_one_process_trains_in_a_folder_and_a_killed_one_leaves_it_free(tmp_path: Path) -> None:
    """A run called again right after a kill was refused while the killed one's workers were still ending."""
    process = started(hold, str(tmp_path), 5.0)
    deadline = time.monotonic() + 60
    while not (tmp_path / "held").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match="another process"), locked(tmp_path):
        pass
    process.kill()
    process.join()
    with locked(tmp_path):
        pass


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, tensors(), Position(step=1), "me")
    with pytest.raises(CheckpointError, match="another run"):
        load(tmp_path, "you")
