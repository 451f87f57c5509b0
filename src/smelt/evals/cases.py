"""A question with its right answer. Suites are lists of these; where they come from is the caller's business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest

Grader = Literal["call", "no_call", "json", "phrases", "any_of_calls"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question. What counts as right depends on the grader (`graders.py`).

    call: exactly the call of `answer`. no_call: text and no call. json: the JSON object of `answer`, field by field.
    phrases: a text with every one of `phrases`. any_of_calls: one call with a name and argument values that `accepted`
    allows ({name: {argument: [values]}}, "" among the values where it may be left out; BFCL's form).
    """

    suite: str
    language: str
    grader: Grader
    request: ChatRequest
    answer: Message | None = None
    phrases: tuple[str, ...] = ()
    accepted: Mapping[str, Mapping[str, list[Any]]] = field(default_factory=dict)
