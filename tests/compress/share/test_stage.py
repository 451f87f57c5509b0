"""The stages: exact at full rank, true facts, the same bytes after a kill, refusals before any work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from smelt.compress.calibration import Calibration
from smelt.compress.chain.store import stage_id
from smelt.compress.share.patterns import Adjacent, Given, Loop, Pattern, Similar
from smelt.compress.share.stage import Repeat, Share
from smelt.compress.stage import Material, Progress, Work
from smelt.core.decoder import Family
from smelt.core.errors import InvalidRequestError, TrainingStoppedError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from tests.tiny import make_tiny_folder

FULL = 4096  # more than any matrix's smaller side
IDS = torch.randint(2, 96, (2, 20), generator=torch.Generator().manual_seed(7))


def folder(path: Path, family: Family = "qwen2", **changes: Any) -> Checkpoint:
    return open_checkpoint(make_tiny_folder(path, family=family, **({"num_layers": 4} | changes)))


def work(path: Path, source: Checkpoint, **changes: Any) -> Work:
    rows = np.random.default_rng(0).integers(2, source.config.vocab_size, (2, 21))
    batch = Batch(rows[:, :-1], rows[:, 1:])
    material = Material(
        calibration=Calibration(source="noise", digest="0" * 64, batches=(batch,)),
        held_out=[batch],
        held_out_bytes=80,
        stream=_no_stream,
        digest="1" * 64,
    )
    fields = {"out": path / "out", "scratch": path / "scratch", "material": material, "teacher": source}
    return Work(**(fields | {"say": lambda _: None} | changes))


def _no_stream(seed: int) -> Any:
    raise AssertionError("sharing learns from no stream")


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    opened = open_checkpoint(folder)
    return Decoder.from_tensors(opened.config, opened.tensors).eval()(IDS)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("init", ["mean", "first"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_a_residue_of_full_rank_is_the_model_itself(tmp_path: Path, family: Family, init: Any) -> None:
    source = folder(tmp_path / "source", family)
    facts = Share(pattern=Adjacent(), rank=FULL, init=init).run(source, work(tmp_path, source))
    made = open_checkpoint(tmp_path / "out")
    assert made.config.layers[1].weights == 0 and made.config.layers[0].residue_rank == (FULL if init == "mean" else 0)
    torch.testing.assert_close(logits(tmp_path / "out"), logits(tmp_path / "source"), atol=2e-4, rtol=1e-4)
    assert facts["error"]["with_residues"] < 1e-6 < 0.3 < facts["error"]["shared"]
    assert facts["warnings"] == ["residues of this rank take as much as sharing saves"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "source" / name).read_bytes()


def test_the_rank_buys_nearness_and_facts_are_true(tmp_path: Path) -> None:
    """Layers that differ by little and by something of rank 4: rank 0 loses it, rank 4 has it all."""
    source = folder(tmp_path / "far", "llama")
    tensors = {name: np.array(array) for name, array in source.tensors.items()}
    rng = np.random.default_rng(1)
    for layer, home in ((1, 0), (3, 2)):
        for name in [n for n in tensors if n.startswith(f"model.layers.{home}.") and n.endswith("_proj.weight")]:
            rows, cols = tensors[name].shape
            apart = rng.standard_normal((rows, 2)) @ rng.standard_normal((2, cols))
            tensors[name.replace(f".{home}.", f".{layer}.")] = (tensors[name] + 0.03 * apart).astype(np.float32)
    save_checkpoint(tmp_path / "source", source.config, tensors)
    source = open_checkpoint(tmp_path / "source")
    errors, away = [], []
    for rank in (0, 1, 4):
        job = work(tmp_path / f"r{rank}", source)
        facts = Share(pattern=Similar(num_stored=2), rank=rank).run(source, job)
        assert json.loads(json.dumps(facts)) == facts
        made = open_checkpoint(job.out)
        assert facts["groups"] == [[0, 1], [2, 3]] and facts["stored_layers"] == 2
        assert facts["parameters"] == {"before": source.config.num_parameters, "after": made.config.num_parameters}
        assert facts["weight_bytes"]["after"] == 4 * made.config.num_parameters
        stored = sum(array.nbytes for array in made.tensors.values())
        assert stored == facts["weight_bytes"]["after"] < facts["weight_bytes"]["before"]
        alike = facts["alike"]["neighbours"]
        assert len(alike) == 3 and min(alike[0], alike[2]) > 0.8 > 0.2 > alike[1]
        errors.append(facts["error"]["with_residues"])
        assert facts["warnings"] == []
        away.append(distance(logits(job.out), logits(tmp_path / "source")))
        assert facts["error"]["shared"] == pytest.approx(errors[0])
    assert errors[0] > errors[1] > 1e3 * errors[2] and away[0] > away[1] > 1e2 * away[2]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_stage_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    source = folder(tmp_path / "source", "gemma3_text", num_layers=6)
    stage = Share(pattern=Loop(times=2, first=0, last=0), rank=2)
    stage.run(source, work(tmp_path / "whole", source))
    stopping, seen = threading.Event(), list[Progress]()

    def told(progress: Progress) -> None:
        seen.append(progress)
        if progress.done == stop_after:
            stopping.set()

    with pytest.raises(TrainingStoppedError, match="finished ones are kept"):
        stage.run(source, work(tmp_path / "cut", source, stopping=stopping, on_progress=told))
    assert not (tmp_path / "cut" / "out").exists()
    (tmp_path / "cut" / "scratch" / "group-half.part").write_bytes(b"cut short")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "scratch").glob("*.safetensors")}
    assert len(kept) == stop_after
    facts = stage.run(source, work(tmp_path / "cut", source, on_progress=seen.append))
    assert contents(tmp_path / "cut" / "out") == contents(tmp_path / "whole" / "out")
    assert facts == stage.run(source, work(tmp_path / "whole", source))
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert seen[-1] == dataclasses.replace(seen[-1], unit="groups", done=3, total=3)


def test_likeness_may_be_that_of_activations(tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    facts = Share(pattern=Similar(num_stored=3, measure="cka"), rank=0, entry_bias=True).run(
        source, work(tmp_path, source)
    )
    assert "little in common" in facts["warnings"][0], "noise has nothing in common with noise"
    assert facts["error"]["with_residues"] == pytest.approx(0.5**0.5, rel=0.02)
    alike = facts["alike"]["neighbours"]
    together = int(np.argmax(alike))
    assert facts["groups"] == [[together, together + 1]]
    made = open_checkpoint(tmp_path / "out")
    assert made.config.layers[together + 1].entry_bias
    assert not np.any(made.tensors[f"model.layers.{together + 1}.entry.bias"])


def test_a_repeated_folder(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", dtype="BF16")
    facts = Repeat(pattern=Loop(times=2)).run(source, work(tmp_path, source))
    made = open_checkpoint(tmp_path / "out")
    assert facts["order"] == [0, 1, 2, 1, 2, 3] and made.config.num_layers == facts["layers"] == 6
    assert made.stored_dtypes == {"BF16"} and made.config.layers[4].weights == 2
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert distance(logits(tmp_path / "out"), logits(tmp_path / "source")) > 0.1


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Share(pattern=Adjacent(times=3)), "do not divide"),
        (Share(pattern=Similar(num_stored=9)), "num_stored is 9"),
        (Share(pattern=Given(together=((0, 7),))), "layers 0 to 3"),
        (Share(rank=-1), "rank is -1"),
        (Repeat(pattern=Loop(times=0)), "times of at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path, stage: Any, message: str) -> None:
    source = folder(tmp_path / "source")
    with pytest.raises(InvalidRequestError, match=message):
        stage.run(source, work(tmp_path, source))
    assert not (tmp_path / "out").exists() and not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("stage", [Share(), Repeat()])
def test_a_model_that_shares_already_is_refused(tmp_path: Path, stage: Any) -> None:
    source = folder(tmp_path / "source")
    Share(pattern=Adjacent(), rank=0).run(source, work(tmp_path, source))
    shared = open_checkpoint(tmp_path / "out")
    with pytest.raises(InvalidRequestError, match="no plain ones any more"):
        stage.run(shared, work(tmp_path / "again", shared))


def test_another_pattern_is_another_stage_and_another_device_is_not() -> None:
    patterns: list[Pattern] = [Adjacent(), Adjacent(first=1, last=1), Loop(), Similar(num_stored=2)]
    stages: list[Any] = [Share(pattern=pattern) for pattern in patterns]
    assert len({stage_id(stage, "a", "b", "c") for stage in stages}) == len(patterns)
    assert stage_id(Share(device="cpu"), "a", "b", "c") == stage_id(Share(), "a", "b", "c")
