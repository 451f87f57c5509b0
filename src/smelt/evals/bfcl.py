"""Berkeley Function Calling Leaderboard v4 (Apache-2.0): simple, multiple and irrelevance, single turn, in English.

Graded as the leaderboard's syntax-tree check does where values are concerned: one call, the right name, every
argument among the accepted values. Function names have their dots replaced by underscores, as OpenAI's API asks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smelt.core.messages import Message, Tool
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.evals.cases import Case

_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


def cases(folder: Path, category: str, params: SamplingParams, limit: int | None = None) -> list[Case]:
    """The questions of `category`: "simple_python", "multiple" or "irrelevance". `folder` holds BFCL's own files."""
    rows = _read(folder / f"BFCL_v4_{category}.json")[:limit]
    truths: dict[str, Any] = {}
    if category != "irrelevance":
        answers = _read(folder / "possible_answer" / f"BFCL_v4_{category}.json")
        truths = {row["id"]: row["ground_truth"] for row in answers}
    return [_case(row, category, truths.get(row["id"]), params) for row in rows]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _case(row: dict[str, Any], category: str, truth: Any, params: SamplingParams) -> Case:
    messages = tuple(Message.of(turn["role"], turn["content"]) for turn in row["question"][0])
    tools = tuple(
        Tool(name=_name(f["name"]), description=f["description"], parameters=json_schema(f["parameters"]))
        for f in row["function"]
    )
    request = ChatRequest(messages=messages, tools=tools, parallel_tool_calls=False, params=params)
    accepted = {_name(name): values for call in truth or [] for name, values in call.items()}
    return Case(
        suite=f"bfcl_{category}",
        language="en",
        grader="any_of_calls" if truth else "no_call",
        request=request,
        accepted=accepted,
    )


def _name(name: str) -> str:
    return name.replace(".", "_")


def json_schema(value: Any) -> Any:
    """BFCL's Python-flavoured schema as JSON Schema."""
    if isinstance(value, list):
        return [json_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    mended = {key: json_schema(inner) for key, inner in value.items() if key != "optional"}
    kind = mended.get("type")
    if isinstance(kind, str):
        mended["type"] = _TYPES.get(kind, kind)
    return mended
