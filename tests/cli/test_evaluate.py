"""`smelt eval` on folders and URLs: the same numbers again without asking again, comparisons, errors in words."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from smelt.checkpoint import open_checkpoint
from smelt.cli import evaluate
from smelt.cli.evaluate import EvalOptions, asked_of, evaluate_command
from smelt.cli.load import limits_of
from smelt.cli.suites import FAMILIES, GROUPS, SUITES, held_out_cases, questions
from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message
from smelt.data.tasks.about import Limits, number_text
from smelt.evals.cases import Case, Reply


@pytest.fixture
def options(tiny_folder: Path, tmp_path: Path) -> EvalOptions:
    return EvalOptions(
        model=str(tiny_folder),
        suite="classify,facts",
        limit=3,
        threads=1,
        results=tmp_path / "results",
        out=tmp_path / "out.json",
        as_json=True,
    )


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_rerun_asks_nothing_and_says_the_same(
    options: EvalOptions, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_command(options)
    first = printed(capsys)
    assert {suite: row["all"]["exact"]["n"] for suite, row in first["scores"].items()} == {"classify": 3, "facts": 3}
    assert 0 < first["scores"]["classify"]["all"]["chance"] <= 0.5
    assert options.out is not None
    assert json.loads(options.out.read_text()) == first
    (kept,) = options.results.iterdir()
    size = kept.stat().st_size
    monkeypatch.setattr("smelt.generate.llm.LLM.chat", lambda self, request: pytest.fail("asked again"))
    evaluate_command(options)
    assert printed(capsys) == first
    assert kept.stat().st_size == size


def test_a_larger_limit_asks_only_what_is_new(options: EvalOptions, capsys: pytest.CaptureFixture[str]) -> None:
    for limit in (3, 5):
        evaluate_command(dataclasses.replace(options, suite="classify", limit=limit))
        assert printed(capsys)["scores"]["classify"]["all"]["exact"]["n"] == limit
    (kept,) = options.results.iterdir()
    assert len(kept.read_text().splitlines()) == 5


def test_compared_with_itself_nothing_differs(options: EvalOptions, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_command(dataclasses.replace(options, compare=options.model, suite="classify", as_json=False, out=None))
    shown = capsys.readouterr().out
    assert "difference" in shown
    assert "+0.000 (+0.000 to +0.000)" in shown


def test_control_is_random_weights_of_the_same_shape(
    options: EvalOptions, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "table.md"
    evaluate_command(dataclasses.replace(options, control=True, suite="facts", out=out, hour_price=2.0))
    report = printed(capsys)
    assert report["control"]["facts"]["all"]["exact"]["n"] == 3
    assert report["cost"] == pytest.approx(report["seconds"] / 3600 * 2, abs=1e-4)
    assert "| facts |" in out.read_text()
    assert "random weights" in out.read_text()


def test_a_url_is_a_model_too(
    options: EvalOptions, live_url: str, served_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server and the folder in process give the same answers to the same questions."""
    name = httpx.get(f"{live_url}/v1/models").json()["data"][0]["id"]
    here = dataclasses.replace(options, model=str(served_folder), weights="fp32", out=None)
    there = dataclasses.replace(here, model=f"{live_url}/v1", name=name)
    scores = []
    for one in (here, there):
        evaluate_command(one)
        found = printed(capsys)["scores"]
        scores.append({suite: row["all"]["exact"] for suite, row in found.items()})
    assert scores[0] == scores[1]
    with pytest.raises(InvalidRequestError, match="--model"):
        evaluate_command(dataclasses.replace(there, name=""))
    with pytest.raises(InvalidRequestError, match="folder"):
        evaluate_command(dataclasses.replace(there, control=True))


def test_unknown_suites_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"nonsense: no such suite; there are .*hierarchy.*bpb"):
        questions(["nonsense"], None)
    with pytest.raises(InvalidRequestError, match=r"bfcl needs eval/bfcl in a data folder \(--data\)"):
        questions(["bfcl"], None)
    with pytest.raises(InvalidRequestError, match="bpb_en needs eval/xquad"):
        questions(["bpb_en"], tmp_path)
    with pytest.raises(InvalidRequestError, match="--corpus"):
        questions(["corpus"], None)


def test_the_list_names_every_suite_and_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_command(EvalOptions(show_list=True))
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0].split(" ")[0] for line in lines} == {"corpus", *(f.name for f in FAMILIES), *GROUPS}
    assert any("bfcl" in line and "needs --data with eval/bfcl" in line for line in lines)


def test_groups_name_suites_that_exist() -> None:
    families = {family.name for family in FAMILIES}
    for members in GROUPS.values():
        assert members
        assert set(members) <= families


@pytest.mark.parametrize("suite", list(SUITES))
def test_the_right_answer_of_every_generated_question_is_graded_right(suite: str) -> None:
    """The answer key passes its own grader; an empty answer never does."""
    for case in held_out_cases(suite, per_language=3):
        assert case.answer is not None
        assert case.grade(Reply(message=case.answer)).exact, (suite, case.answer)
        assert not case.grade(Reply(message=Message("assistant"))).exact


def test_a_model_is_asked_about_its_own_limits(tiny_folder: Path, tmp_path: Path, options: EvalOptions) -> None:
    """The right answers name what the folder says of itself, and not the default."""
    folder = tmp_path / "named"
    shutil.copytree(tiny_folder, folder)
    (folder / "card.json").write_text(json.dumps({"name": "Tinkerer", "cutoff": "2021-03"}))
    context = open_checkpoint(tiny_folder).config.context_len
    assert limits_of(str(folder)) == Limits(
        name="Tinkerer", context_len=context, max_output_len=min(16_384, context), cutoff=(2021, 3)
    )
    assert limits_of(str(tiny_folder)).name == Limits().name
    chosen = dataclasses.replace(options, suite="limits", limit=0)
    own, default = asked_of(str(folder), chosen), asked_of("http://127.0.0.1:1/v1", chosen)
    right = [question.answer.text for question in own if isinstance(question, Case) and question.answer]
    assert any("Tinkerer" in text for text in right) and any(number_text(context, "en") in text for text in right)
    assert not any("131,072" in text or "131.072" in text for text in right)
    assert any(
        "131,072" in question.answer.text for question in default if isinstance(question, Case) and question.answer
    )


def test_a_corpus_is_predicted_by_language(
    options: EvalOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smelt.data.corpus.documents import Document
    from smelt.data.corpus.shards import ShardWriter

    writer = ShardWriter(tmp_path, "book", "valid")
    for i, language in enumerate(["en", "de", "en"]):
        writer.add(Document(text=f"Text {i} of some words.", source="book", language=language, key=str(i)))
    writer.close()
    shards = [dataclasses.asdict(shard) for shard in writer.shards]
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": shards}))
    evaluate_command(dataclasses.replace(options, suite="corpus", corpus=tmp_path))
    report = printed(capsys)
    assert {suite: row["all"]["bits_per_byte"]["n"] for suite, row in report["scores"].items()} == {
        "corpus_en": 2,
        "corpus_de": 1,
    }
    assert report["scores"]["corpus_en"]["all"]["control"]["byte_frequencies"] > 2
    assert "2048 bytes" in report["bits_per_byte_form"]


def test_progress_says_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("smelt.cli.evaluate.time.monotonic", lambda: now[0])
    progress = evaluate.Progress("m", 100)
    for second in range(1, 21):
        now[0] = float(second)
        progress(20 + second, second)
    said = capsys.readouterr().err.splitlines()
    assert said == ["m: 30 of 100, 1.0/s, 70 s left", "m: 40 of 100, 1.0/s, 60 s left"]
