"""BFCL's files as cases."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from smelt.core.messages import Message, ToolCall
from smelt.core.sampling import SamplingParams
from smelt.evals.bfcl import cases, json_schema
from smelt.evals.graders import grade


def test_python_types_become_json_types() -> None:
    found = json_schema(
        {"type": "dict", "properties": {"x": {"type": "float", "optional": True}, "y": {"type": "tuple"}}}
    )
    assert found == {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "array"}}}


def test_questions_and_truths_meet(tmp_path: Path) -> None:
    function = {"name": "math.area", "description": "d", "parameters": {"type": "dict", "properties": {}}}
    row = {"id": "a", "question": [[{"role": "user", "content": "area?"}]], "function": [function]}
    (tmp_path / "possible_answer").mkdir()
    for place in (tmp_path / "BFCL_v4_multiple.json", tmp_path / "BFCL_v4_irrelevance.json"):
        place.write_text(json.dumps(row) + "\n")
    truth = {"id": "a", "ground_truth": [{"math.area": {"base": [10]}}]}
    (tmp_path / "possible_answer" / "BFCL_v4_multiple.json").write_text(json.dumps(truth) + "\n")
    (one,) = cases(tmp_path, "multiple", SamplingParams())
    answer = Message(role="assistant", tool_calls=(ToolCall(id="x", name="math_area", arguments='{"base":10}'),))
    assert grade(one, answer).exact
    (none,) = cases(tmp_path, "irrelevance", SamplingParams())
    assert grade(none, Message.of("assistant", "no tool")).exact
    assert not grade(none, answer).exact


@pytest.mark.parametrize("category", ["simple_python", "multiple", "irrelevance"])
def test_real_files_read(shared_data: Path, category: str) -> None:
    found = cases(shared_data / "eval" / "bfcl", category, SamplingParams())
    assert len(found) > 100
    for case in found:
        for tool in case.request.tools:
            jsonschema.Draft202012Validator.check_schema(tool.parameters)
