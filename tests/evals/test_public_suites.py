"""Public files become questions: by small files of ours, and by the real ones where they lie beside the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smelt.core.messages import Message
from smelt.core.sampling import SamplingParams
from smelt.evals import arithmetic, code, mmlu, needle, xquad
from smelt.evals.cases import Case, Choice, Reply

PARAMS = SamplingParams(temperature=0.0, max_tokens=8)


def right(case: Case, text: str) -> bool | None:
    return case.grade(Reply(message=Message.of("assistant", text))).exact


def test_gsm8k_answers_stand_after_the_mark(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "1+1=2 of 3\n#### 1,002"}) + "\n")
    (case,) = arithmetic.gsm8k_cases(file, PARAMS)
    assert "How many?" in case.request.messages[0].text
    assert right(case, "so it is 1002")
    assert not right(case, "3")


def test_mgsm_is_one_problem_in_many_languages(tmp_path: Path) -> None:
    for language in ("en", "de", "zh"):
        (tmp_path / f"mgsm_{language}.tsv").write_text(f"{language} one\t18\n{language} two\t3\n")
    found = arithmetic.mgsm_cases(tmp_path, PARAMS)
    assert [case.group for case in found] == ["problem 0", "problem 1"] * 3
    assert all(right(case, "18") is (case.group == "problem 0") for case in found)


def test_mmlu_takes_the_most_probable_letter(tmp_path: Path) -> None:
    (tmp_path / "some_subject_dev.csv").write_text(
        'question,choice0,choice1,choice2,choice3,answer\n"2+2, is",1,2,4,8,2\n'
    )
    (question,) = mmlu.questions(tmp_path)
    assert question.context.endswith("A. 1\nB. 2\nC. 4\nD. 8\nAnswer:")
    assert "some subject" in question.context
    assert question.options == (" A", " B", " C", " D")
    assert question.grade(Reply(scores=((3.0, 2), (2.0, 2), (1.0, 2), (4.0, 2)))).exact
    assert not question.grade(Reply(scores=((0.5, 2), (2.0, 2), (1.0, 2), (4.0, 2)))).exact
    assert question.chance == 0.25


def test_xquad_asks_and_is_running_text(tmp_path: Path) -> None:
    for language in xquad.LANGUAGES:
        ask: dict[str, Any] = {"question": "Who?", "answers": [{"text": "Ada"}, {"text": "Ada"}]}
        article = {"paragraphs": [{"context": f"Ada wrote it ({language}).", "qas": [ask]}]}
        (tmp_path / f"xquad.{language}.json").write_text(json.dumps({"data": [article]}))
    cases = xquad.cases(tmp_path, PARAMS)
    assert {case.group for case in cases} == {"paragraph 0"}
    assert all(right(case, "Ada") and case.phrases == ("Ada",) for case in cases)
    assert [one.suite for one in xquad.passages(tmp_path)] == ["bpb_en", "bpb_de", "bpb_zh"]


def test_code_is_text_to_predict(tmp_path: Path) -> None:
    (tmp_path / "h").write_text(json.dumps({"prompt": "def f():\n", "canonical_solution": "    return 1\n"}) + "\n")
    (tmp_path / "m").write_text(json.dumps({"text": "Write f.", "code": "def f():\r\n  pass"}) + "\n")
    texts = [one.text for one in code.passages(tmp_path / "h", tmp_path / "m")]
    assert texts == ["def f():\n    return 1\n", "# Write f.\ndef f():\n  pass\n"]


@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_needles_lie_where_they_should(language: str) -> None:
    paragraphs = [f"paragraph {i} " + "x" * 90 for i in range(30)]
    cases = needle.cases(paragraphs, language, PARAMS, lengths=(1000, 8000), per_cell=2)
    assert len(cases) == 2 * 5 * 2
    for case in cases:
        text = case.request.messages[-1].text
        wanted = 1000 if case.suite == "needle_1k" else 8000
        (number,) = case.phrases
        assert text.count(number) == 1
        assert abs(len(text) - wanted) < 200 + wanted / 20
        depth = text.index(number) / text.rindex("\n\n")
        assert abs(100 * depth - int(case.detail.split()[1])) < 13
        assert right(case, f"It is {number}.")
    assert len({case.phrases for case in cases}) > 15


def test_needle_table_counts_what_fitted() -> None:
    from smelt.evals.suite import Row

    cases = needle.cases(["hay"], "en", PARAMS, lengths=(1000,), per_cell=1)
    rows = [
        Row(case, Reply(message=Message.of("assistant", case.phrases[0])), None, 0, 0)
        if i == 4
        else Row(
            case, Reply(), case.grade(Reply(message=Message.of("assistant", case.phrases[0] if i else "no"))), 0, 0
        )
        for i, case in enumerate(cases)
    ]
    last = needle.table(rows).splitlines()[-1]
    assert last == "| 1k | 0 of 1 | 1 of 1 | 1 of 1 | 1 of 1 | - |"


def test_real_files_read(shared_data: Path) -> None:
    data = shared_data / "eval"
    assert len(arithmetic.gsm8k_cases(data / "gsm8k/test.jsonl", PARAMS)) > 500
    assert len(arithmetic.mgsm_cases(data / "mgsm", PARAMS)) > 300
    assert len(xquad.cases(data / "xquad", PARAMS)) > 2000
    found = mmlu.questions(data / "mmlu/dev")
    assert len(found) > 200
    assert all(isinstance(one, Choice) and 0 <= one.right < 4 for one in found)
    for case in arithmetic.gsm8k_cases(data / "gsm8k/test.jsonl", PARAMS):
        assert right(case, case.phrases[0])
