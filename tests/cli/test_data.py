"""`smelt data`: the verbs on a small invented folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smelt.cli.app import app
from smelt.core.errors import InvalidRequestError

TEXT = (
    "The keeper climbed the stairs of tower number {0} every evening and lit the lamp before the ships came home. "
    "His daughter number {0} counted boats from the window, and when one of the {0} was missing she wrote it on a "
    "slate that hung by door {0}. In winter {0} the wind was so strong that they could not open it and lived on bread."
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    rows = [{"text": TEXT.format(word)} for word in numbers] + [{"text": "short"}]
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "data",
        "build",
        str(folder / "out"),
        "--source",
        f"notes={folder / 'notes.jsonl'},language=en,licence=own",
    ]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert "notes" in result.stdout
    assert "own" in result.stdout
    assert "nothing is compared with evaluation sets" in result.stderr
    assert "filter notes" in result.stderr
    return folder / "out"


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["data", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_stats_are_a_table_or_one_object(corpus: Path) -> None:
    table = run("stats", str(corpus))
    assert "Dropped" in table
    assert "length" in table
    found = json.loads(run("stats", str(corpus), "--json"))
    assert found["drops"]["notes"]["length"]["count"] == 1
    assert found["sources"][0]["licence"] == "own"


def test_samples_are_cut_for_people_and_whole_for_scripts(corpus: Path) -> None:
    shown = run("sample", str(corpus), "-n", "2", "--chars", "40")
    assert shown.count("--- notes en notes.jsonl:") == 2
    assert "[…]" in shown
    lines = [json.loads(line) for line in run("sample", str(corpus), "-n", "3", "--seed", "4", "--json").splitlines()]
    assert len(lines) == 3
    assert all(line["text"].endswith("bread.") for line in lines)


def test_what_is_no_corpus_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no finished corpus"):
        run("stats", str(tmp_path))
    with pytest.raises(InvalidRequestError, match="no source of text"):
        run("build", str(tmp_path / "out"))
