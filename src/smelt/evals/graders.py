"""Exact graders: an answer is right or not, by values and never by a model's opinion."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from smelt.core.messages import Message
from smelt.evals import text_graders
from smelt.evals.grade import Grade
from smelt.evals.instructions import grade_instructions
from smelt.evals.obedience import obeys
from smelt.evals.sought import Sought


def grade(sought: Sought, answer: Message) -> Grade:
    """How right `answer` is."""
    if sought.grader == "no_call":
        return Grade(exact=not answer.tool_calls and bool(answer.text.strip()))
    if sought.grader == "phrases":
        return Grade(exact=not answer.tool_calls and all(phrase in answer.text for phrase in sought.phrases))
    if sought.grader == "any_of_calls":
        return _grade_accepted(sought.accepted, answer)
    if sought.grader == "number":
        return text_graders.grade_number(sought.phrases[0], answer.text)
    if sought.grader == "span":
        return text_graders.grade_span(sought.phrases, answer.text, sought.language)
    if sought.grader == "instructions":
        return grade_instructions(sought.instructions, answer.text)
    if sought.grader == "obeys":
        held = obeys(answer.text, sought.phrases, sought.forbidden, sought.checks)
        return Grade(exact=not answer.tool_calls and held)
    if sought.answer is None:
        raise ValueError(f"a case of the grader {sought.grader!r} needs an answer to compare with")
    return _grade_call(sought.answer, answer) if sought.grader == "call" else _grade_json(sought.answer.text, answer)


def _grade_call(sought: Message, answer: Message) -> Grade:
    if len(answer.tool_calls) != len(sought.tool_calls):
        return Grade(exact=False, chosen=False)
    pairs = list(zip(sought.tool_calls, answer.tool_calls, strict=True))
    chosen = all(a.name == b.name for a, b in pairs)
    same = all(equal(parsed(a.arguments), parsed(b.arguments)) for a, b in pairs)
    return Grade(exact=chosen and same, chosen=chosen)


def _grade_accepted(accepted: Mapping[str, Mapping[str, list[Any]]], answer: Message) -> Grade:
    if len(answer.tool_calls) != 1:
        return Grade(exact=False, chosen=False)
    call = answer.tool_calls[0]
    arguments = parsed(call.arguments)
    if call.name not in accepted or not isinstance(arguments, dict):
        return Grade(exact=False, chosen=call.name in accepted)
    allowed = accepted[call.name]
    right = all(name in allowed and _allowed(value, allowed[name]) for name, value in arguments.items())
    missing = [name for name, values in allowed.items() if name not in arguments and "" not in values]
    return Grade(exact=right and not missing, chosen=True)


def _allowed(value: Any, options: list[Any]) -> bool:
    if isinstance(value, str):
        plain = _plain(value)
        return any(isinstance(option, str) and _plain(option) == plain for option in options)
    if isinstance(value, dict):
        return any(isinstance(option, dict) and _dict_allowed(value, option) for option in options)
    return any(equal(value, option) for option in options)


def _dict_allowed(value: dict[str, Any], option: dict[str, Any]) -> bool:
    return all(name in option and _allowed(inner, option[name]) for name, inner in value.items())


def _plain(text: str) -> str:
    """As BFCL compares strings: without case and without `,./-_*^` and spaces."""
    return "".join(char for char in text.lower() if char not in " ,./-_*^")


def _grade_json(sought: str, answer: Message) -> Grade:
    wanted = Counter(leaves(parsed(sought)))
    found = Counter() if answer.tool_calls else Counter(leaves(parsed(answer.text)))
    hits = sum((wanted & found).values())
    return Grade(exact=wanted == found, hits=hits, predicted=sum(found.values()), sought=sum(wanted.values()))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, value) of every leaf; numbers that are equal are written alike. Unreadable JSON has none."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{i}]")
    elif value is not UNREADABLE:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        yield path, _written(value) if number else json.dumps(value)


def _written(number: float) -> str:
    try:
        return repr(float(number))
    except OverflowError:  # a whole number of more than 308 digits, which a model does write
        return str(number)


class _Unreadable:
    """What is no JSON; equal to nothing, itself included."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


UNREADABLE = _Unreadable()


def parsed(text: str) -> Any:
    """The JSON value of `text`, or UNREADABLE."""
    try:
        return json.loads(text)
    except ValueError:
        return UNREADABLE


def equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, but true does not equal 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
