"""Two processes over gloo are one process: same gradients, same weights, same data after another number of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smelt.core.errors import InvalidRequestError
from smelt.train.distributed import World, check_batches
from smelt.train.loop import Stage
from tests.train.runs import Uneven, tiny_run

ROOT = Path(__file__).resolve().parents[2]


def two_processes(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Run tests.train.runs in two processes; the whole weights at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.train.runs", str(folder), json.dumps({"stream": "uneven", **options})]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}, cwd=ROOT, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=100)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return load_file(folder / "weights.safetensors")


def one_process(folder: Path, stop_after: int | None = None, **options: Any) -> dict[str, torch.Tensor]:
    run = tiny_run(folder, stages=[Stage(name="only", stream=Uneven())], **options)
    run.train(stop_after)
    return dict(run.result().named_parameters())


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert set(a) == set(b)
    return max(float((a[name].detach() - b[name].detach()).abs().max()) for name in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return one_process(tmp_path_factory.mktemp("alone"), steps=6, accumulate=4)


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_two_processes_are_one(tmp_path: Path, alone: dict[str, torch.Tensor], parallel: str) -> None:
    """Unequal token counts per rank: batches 0 and 2 have 1 and 3 rows, batches 1 and 3 have 2 and 4."""
    both = two_processes(tmp_path, steps=6, accumulate=4, parallel=parallel)
    assert furthest(alone, both) < 1e-5
