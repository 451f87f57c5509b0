"""Two processes over gloo are one process: same gradients, same weights, same data after another number of them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smelt.core.errors import InvalidRequestError
from smelt.train.distributed import World, check_batches
from tests.train.runs import Job, deserted, first_gradients, furthest, started, together, uneven_run, weights

PARALLEL = ("replicate", "shard")


def pair(body: Any, what: Any) -> list[int | None]:
    """Two processes of `body(what, environment)`; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    both = [started(body, what, {**shared, "RANK": str(rank)}) for rank in range(2)]
    for process in both:
        process.join(100)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in both]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything two processes do here, in one pair of them; `later` was begun by one process."""
    found = tmp_path_factory.mktemp("both")
    uneven_run(found / "later").train(stop_after=3)
    jobs: list[Job] = [(str(found / parallel), {"parallel": parallel}, None) for parallel in PARALLEL]
    jobs += [(str(found / f"begun_{parallel}"), {"parallel": parallel, "ema": 0.9}, 3) for parallel in PARALLEL]
    jobs.append((str(found / "later"), {"parallel": "shard"}, None))
    assert pair(together, jobs) == [0, 0]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    run = uneven_run(tmp_path_factory.mktemp("alone"))
    run.train()
    return weights(run)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_gradients_are_those_of_one_process(folder: Path, tmp_path: Path, parallel: str) -> None:
    """Unequal token counts: rank 0 has the batches of 1 and 3 rows, rank 1 those of 2 and 4."""
    sought = first_gradients(uneven_run(tmp_path))
    found = load_file(folder / parallel / "gradients.safetensors")
    count = sum(batch.num_learned for batch in uneven_run(tmp_path).stages[0].stream.chunk(0))
    assert furthest(found, sought) / count < 1e-6
    assert max(float(tensor.abs().max()) for tensor in sought.values()) / count > 1e-2


@pytest.mark.parametrize("parallel", PARALLEL)
def test_weights_are_those_of_one_process(folder: Path, alone: dict[str, torch.Tensor], parallel: str) -> None:
    assert furthest(load_file(folder / parallel / "weights.safetensors"), alone) < 2e-6


@pytest.mark.parametrize("parallel", PARALLEL)
def test_one_process_goes_on_where_two_stopped(folder: Path, tmp_path: Path, parallel: str) -> None:
    """The average's state and the data's order included."""
    whole = uneven_run(tmp_path / "whole", ema=0.9)
    whole.train()
    resumed = uneven_run(folder / f"begun_{parallel}", ema=0.9)
    assert resumed.train().step == 6
    assert furthest(weights(resumed), weights(whole)) < 2e-6
    assert furthest(resumed.average.state, whole.average.state) < 2e-6


def test_two_processes_go_on_where_one_stopped(folder: Path, alone: dict[str, torch.Tensor]) -> None:
    assert furthest(load_file(folder / "later" / "weights.safetensors"), alone) < 2e-6


def test_a_process_that_dies_ends_the_run_with_words_and_it_goes_on(
    tmp_path: Path, alone: dict[str, torch.Tensor]
) -> None:
    assert pair(deserted, str(tmp_path)) == [0, 7]
    assert "lost each other" in (tmp_path / "told").read_text()
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000003"]
    again = uneven_run(tmp_path)
    assert again.train().step == 6
    assert furthest(weights(again), alone) < 2e-6


def test_only_one_process_writes(folder: Path) -> None:
    lines = (folder / "replicate" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6


def test_a_split_that_does_not_come_out_even_is_refused() -> None:
    world = World(torch.device("cpu"), rank=0, size=2)
    check_batches(3, world, "replicate")
    with pytest.raises(InvalidRequestError, match="multiple of 2"):
        check_batches(3, world, "shard")


def test_sharding_needs_processes(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="torchrun"):
        uneven_run(tmp_path, parallel="shard")
