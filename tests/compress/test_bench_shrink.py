"""bench/shrink.py in small: it runs, goes on where it stopped, and its exam and verdicts are what they say."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import open_checkpoint
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.objectives import mean_loss

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    torch.set_num_threads(1)
    before = list(sys.path)
    sys.path.insert(0, str(BENCH))
    import shrink

    yield shrink
    sys.path[:] = before
    for name in ("shrink", "shrink_material"):
        del sys.modules[name]


def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    """The final line of a smoke run."""
    monkeypatch.setattr(sys, "argv", ["shrink.py", "--smoke", *more])
    bench.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_part_runs_and_is_not_done_again(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--out", str(tmp_path), "--parts", "sparse")
    first = run(bench, monkeypatch, capsys, *arguments)
    assert [name for name in first["arms"] if name.startswith("half zero")] == [
        f"half zero, {method}" for method in ("magnitude", "wanda", "sparsegpt")
    ]
    assert [name.rsplit(" ", 1)[1] for name in first["claims"]] == ["bits", "KL"]
    assert all(claim["verdict"] in ("holds", "fails", "undecided") for claim in first["claims"].values())
    assert all(arm["kl"] > 0 for name, arm in first["arms"].items() if name != "source")
    files = [path for part in ("chain/stages", "exam") for path in (tmp_path / part).rglob("*") if path.is_file()]
    made = {path: path.stat().st_mtime_ns for path in files}
    assert sum(path.name == "stage.json" for path in made) == 3
    second = run(bench, monkeypatch, capsys, *arguments)
    again = {path: path.stat().st_mtime_ns for path in made}
    assert {path for path in made if made[path] != again[path]} == set()
    assert {**second, "cpu_s": 0} == {**first, "cpu_s": 0}


@pytest.mark.slow
def test_every_part_runs(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(bench, monkeypatch, capsys, "--out", str(tmp_path))
    assert {claim.split(":")[0] for claim in found["claims"]} == set(bench.PARTS)
    pruned, source = (found["arms"][name]["parameters"] for name in ("pruned 30 %", "source"))
    assert pruned <= 0.7 * source
    assert found["arms"]["from scratch, seed 1"]["parameters"] == pruned


def test_the_exam_is_by_document_and_held_out(bench: ModuleType, tmp_path: Path) -> None:
    """A document alone in a row, without its neighbours, has the nats it has among them."""
    folder = bench.tiny_model(tmp_path / "tiny")
    source = open_checkpoint(folder)
    setting = bench.Setting(batch_tokens=1024, calibration_rows=2, stage_rows=1, exam_tokens=600)
    material, batches = bench.make_material(setting, source, tmp_path)
    exam = bench.Exam(batches, 1, source, tmp_path / "exam")
    found, divergence = exam.answers(bench.artifact_of(folder), "tiny")
    assert np.abs(divergence).max() < 1e-5, "from itself"
    model = Decoder.from_tensors(source.config, source.tensors).eval()
    cpu = torch.device("cpu")
    assert found.sum() == pytest.approx(mean_loss(model, batches, cpu) * exam.num_learned, rel=1e-5)
    segments = batches[0].segment_ids[0]
    inside = segments == segments[np.flatnonzero(batches[0].targets[0] >= 0)[0]]
    alone = Batch(batches[0].inputs[:1, inside], batches[0].targets[:1, inside])
    assert found[0] == pytest.approx(mean_loss(model, [alone], cpu) * alone.num_learned, rel=1e-4)

    def rows(given: Any) -> set[bytes]:
        return {row.tobytes() for batch in given for row in batch.inputs}

    fewer, other = bench.make_material(dataclasses.replace(setting, without=("offered",)), source, tmp_path)
    assert fewer.digest == material.digest, "another exam examines the same models"
    assert rows(other) != rows(batches)
    with pytest.raises(SystemExit, match="no task unheard"):
        bench.make_material(dataclasses.replace(setting, without=("unheard",)), source, tmp_path)
    learned = rows(material.stream(0).chunk(0))
    assert not rows(batches) & (learned | rows(material.held_out) | rows(material.calibration.batches))
    assert not learned & rows(material.stream(1).chunk(0))


def test_a_bar_is_held_by_a_whole_interval(bench: ModuleType) -> None:
    made = bench.Bench(source=None, material=None, exam=None, out=None, asked=None)
    cases = {"a": (0.1, 0.2, "holds"), "b": (0.1, 0.4, "undecided"), "c": (0.35, 0.4, "fails")}
    for name, (low, high, _) in cases.items():
        made.claim(name, {"value": 0.2, "interval95": [low, high]}, most=0.3)
        made.claim(f"not {name}", {"value": -0.2, "interval95": [-high, -low]}, least=-0.3)
    for name, (_, _, verdict) in cases.items():
        assert made.claims[name]["verdict"] == verdict
        assert made.claims[f"not {name}"]["verdict"] == verdict


def test_a_saved_file_keeps_other_parts_of_the_same_exam(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results" / "shrink_x.json"
    found = {"fingerprint": "f", "exam": {"digest": "e"}, "arms": {"a": 1}, "claims": {"a": 1}, "cpu_s": {"p": 1}}
    bench.saved(path, found)
    bench.saved(path, found | {"arms": {"b": 2}, "claims": {"a": 3}, "cpu_s": {"q": 2}})
    told = json.loads(path.read_text())
    assert (told["arms"], told["claims"], told["cpu_s"]) == ({"a": 1, "b": 2}, {"a": 3}, {"p": 1, "q": 2})
    bench.saved(path, found | {"exam": {"digest": "other"}, "arms": {"c": 1}})
    assert json.loads(path.read_text())["arms"] == {"c": 1}
