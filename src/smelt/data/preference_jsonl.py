"""Preference pairs from a JSONL file in OpenAI's format for direct preference optimization.

    {"input": {"messages": [...], "tools": [...]}, "preferred_output": [MESSAGE], "non_preferred_output": [MESSAGE]}

Each output is one assistant message, in a list or alone. `preferred_completion` and `non_preferred_completion`, as the
API's schema calls them, mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smelt.core.errors import DataError
from smelt.core.messages import Message
from smelt.data.chat_jsonl import Problem, ProblemError, lines, record_of
from smelt.data.preferences import Preference

_INPUT_FIELDS = {"messages", "tools", "parallel_tool_calls"}
_SIDES = (("preferred_output", "preferred_completion"), ("non_preferred_output", "non_preferred_completion"))


def read_preference_jsonl(path: Path | str) -> list[Preference]:
    """All pairs, checked as conversations are (chat_jsonl.py); blank lines are passed over.

    Raises DataError, naming line and field, for the first ten lines that are wrong, and for a file without any pair.
    """
    found: list[Preference] = []
    problems: list[Problem] = []
    for number, text in lines(Path(path)):
        try:
            found.append(_preference(number, text))
        except ProblemError as error:
            problems.append(Problem(line=number, field=error.path, message=error.message))
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(f"{Path(path).name}: {'; '.join(map(str, problems[:10]))}{more}")
    if not found:
        raise DataError(f"{Path(path).name}: sought pairs of answers, found none")
    return found


def preference_line(preference: Preference) -> str:
    """The pair as a line of such a file, for files that smelt writes; `read_preference_jsonl` gives it back."""
    shown: dict[str, Any] = {"messages": [_shown(message) for message in preference.prompt]}
    if preference.tools:
        shown["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
            }
            for tool in preference.tools
        ]
    sides = {names[0]: [_shown(m)] for names, m in zip(_SIDES, (preference.chosen, preference.rejected), strict=True)}
    return json.dumps({"input": shown, **sides}, ensure_ascii=False)


def _preference(number: int, text: str) -> Preference:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ProblemError("", "not JSON; sought one object a line") from None
    if not isinstance(value, dict) or not isinstance(value.get("input"), dict):
        raise ProblemError("input", "sought an object with input, preferred_output and non_preferred_output")
    _only(value, {"input", "metadata", *_SIDES[0], *_SIDES[1]}, "")
    _only(value["input"], _INPUT_FIELDS, "input.")
    chosen, rejected = (_side(number, value, names) for names in _SIDES)
    if chosen.messages[-1] == rejected.messages[-1]:
        raise ProblemError(_SIDES[1][0], "the same as the preferred one; sought two different answers")
    return Preference(
        prompt=chosen.messages[:-1], chosen=chosen.messages[-1], rejected=rejected.messages[-1], tools=chosen.tools
    )


def _side(number: int, value: Mapping[str, Any], names: tuple[str, str]) -> Any:
    """The conversation that ends in one of the answers, by the one parser of conversations there is."""
    given = [name for name in names if name in value]
    if len(given) != 1:
        raise ProblemError(names[0], f"sought one of {names[0]} and {names[1]}, found {len(given)}")
    output = value[given[0]]
    answers = output if isinstance(output, list) else [output]
    if len(answers) != 1 or not isinstance(answers[0], dict) or answers[0].get("role") != "assistant":
        raise ProblemError(given[0], "sought one assistant message")
    messages = value["input"].get("messages")
    if not isinstance(messages, list) or not messages:
        raise ProblemError("input.messages", "sought a list of messages")
    whole = {**value["input"], "messages": [*messages, answers[0]]}
    try:
        record = record_of(number, json.dumps(whole))
    except ProblemError as error:
        last = f"messages[{len(messages)}]"
        inside = error.path.startswith(last)
        raise ProblemError(
            given[0] + error.path.removeprefix(last) if inside else f"input.{error.path}", error.message
        ) from None
    return record.example  # type: ignore[union-attr] # never a text: it has messages


def _only(value: Mapping[str, Any], names: set[str], prefix: str) -> None:
    for name in value:
        if name not in names:
            raise ProblemError(f"{prefix}{name}", f"unknown field; sought {', '.join(sorted(names))}")


def _shown(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role}
    if message.content or not message.tool_calls:
        texts = [{"type": "text", "text": part.text} for part in message.content]
        body["content"] = message.text if len(texts) < 2 else texts
    if message.name is not None:
        body["name"] = message.name
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return body
