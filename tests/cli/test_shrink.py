"""`smelt shrink` and `smelt verify` from the command line, on a model of a few thousand parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from smelt.checkpoint import open_checkpoint
from smelt.cli.app import app
from smelt.core.errors import InvalidRequestError
from tests.compress.chain.fakes import small_source

RUN = CliRunner()
QUICK = ["--row-len", "32", "--rows", "2", "--train-tokens", "2000", "--rounds", "0"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    text = "".join(f"Line {i}: the quick brown fox jumps {i * i} times today.\n\n" for i in range(300))
    (folder / "texts.txt").write_text(text)
    return small_source(folder / "small")


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    text = str(source.parent / "texts.txt")
    return ["shrink", str(source), "--out", str(out), "--train-on", text, *QUICK, *more]


def test_a_run_ends_in_a_folder_that_verifies(source: Path, tmp_path: Path) -> None:
    more = ["--stages", "distil,w8", "--set", "distil.steps=3", "--max-bytes", "1000000", "--json", "--name", "less"]
    made = RUN.invoke(app, arguments(source, tmp_path / "out", *more))
    assert made.exit_code == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["made"] == str(tmp_path / "out" / "model")
    assert [row["name"] for row in told["report"]["rows"]] == ["source", "distil", "quantize"]
    assert "distil (1 of 2): 3 of 3 steps" in made.stderr
    opened = open_checkpoint(tmp_path / "out" / "model")
    assert opened.scheme is not None
    assert opened.card is not None
    assert opened.card["name"] == "less"
    assert told["report"]["change"]["bytes_ratio"] < 1
    checked = RUN.invoke(app, ["verify", str(tmp_path / "out"), "--json"])
    assert checked.exit_code == 0
    assert json.loads(checked.stdout)["sound"]
    (tmp_path / "out" / "model" / "card.json").write_text("{}")
    broken = RUN.invoke(app, ["verify", str(tmp_path / "out" / "model")])
    assert broken.exit_code == 1
    assert "BROKEN   card.json was changed" in broken.stdout


def test_a_failing_gate_ends_in_an_error_a_report_and_no_folder(source: Path, tmp_path: Path) -> None:
    more = ["--stages", "w8", "--max-bytes", "1000", "--min-agreement", "0.1"]
    made = RUN.invoke(app, arguments(source, tmp_path / "out", *more))
    assert made.exit_code == 1
    assert "max_bytes failed: nothing was published" in made.stderr
    assert "gate min_agreement: sought 0.1" in made.stdout
    assert "FAILED" in made.stdout
    assert not (tmp_path / "out" / "model").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert not report["passed"]
    assert "nothing was published" in (tmp_path / "out" / "report.html").read_text()


def test_a_dry_run_prints_the_plan_and_makes_nothing(source: Path, tmp_path: Path) -> None:
    shown = RUN.invoke(app, arguments(source, tmp_path / "out", "--dry-run", "--to", "60%"))
    assert shown.exit_code == 0, shown.output
    assert "gate: max_bytes" in shown.stdout
    assert "memory" in shown.stdout
    assert not (tmp_path / "out").exists()
    told = RUN.invoke(app, arguments(source, tmp_path / "out", "--dry-run", "--json"))
    assert [stage["name"] for stage in json.loads(told.stdout)["stages"]] == ["prune", "distil", "quantize"]


def test_what_does_not_fit_is_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    for more in (["--to", "tiny"], ["--stages", "prun"], ["--set", "distil.step=3"], ["--min-agreement", "2"]):
        made = RUN.invoke(app, arguments(source, tmp_path / "out", *more))
        assert isinstance(made.exception, InvalidRequestError)
    assert isinstance(RUN.invoke(app, ["shrink", str(source)]).exception, InvalidRequestError)
    assert not (tmp_path / "out").exists()
