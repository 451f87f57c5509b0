"""What counts as a right answer to a chat question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from smelt.core.messages import Message
from smelt.evals.instructions import Instruction

Grader = Literal["call", "no_call", "json", "phrases", "any_of_calls", "number", "span", "instructions", "obeys"]


@dataclass(frozen=True, kw_only=True)
class Sought:
    """What is right depends on the grader (`graders.py`); `language` is the question's.

    call: exactly the call of `answer`. no_call: text and no call. json: the JSON object of `answer`, field by field.
    phrases: a text with every one of `phrases`. any_of_calls: one call with a name and argument values that `accepted`
    allows ({name: {argument: [values]}}, "" among the values where it may be left out; BFCL's form). number: the last
    number equals that of `phrases[0]`. span: one of `phrases`, by exact match and F1. instructions: every one is kept.
    obeys: a text with every one of `phrases`, none of `forbidden` in any disguise, and true to `checks` (obedience.py).
    """

    language: str
    grader: Grader
    answer: Message | None = None
    phrases: tuple[str, ...] = ()
    accepted: Mapping[str, Mapping[str, list[Any]]] = field(default_factory=dict)
    instructions: tuple[Instruction, ...] = ()
    forbidden: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
