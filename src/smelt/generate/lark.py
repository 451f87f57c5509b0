"""What an answer may look like, written as one grammar in llguidance's dialect of Lark.

A control token is `<[id]>`: no text can spell it, so a call begins only where the model drew its token.
JSON is written compactly (no whitespace between tokens): shorter answers, and no endless run of spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smelt.chat.renderer import CallSyntax, Control

MAX_CALLS = 32  # parallel calls in one answer; a model that never stops calling must end somewhere
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class CallRule:
    """One function the answer may call, with the schema its arguments follow."""

    name: str
    schema: Mapping[str, Any]


def json_rule(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """An inline rule for compact JSON under `schema`. lenient ignores keywords llguidance does not implement."""
    options = {"whitespace_flexible": False, "lenient": lenient}
    return "%json " + json.dumps({**schema, "x-guidance": options}, allow_nan=False)


def json_grammar(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """The answer is one JSON value under `schema` and nothing else."""
    return f"start: {json_rule(schema, lenient=lenient)}\n"


def calls_grammar(
    syntax: CallSyntax,
    calls: Sequence[tuple[CallRule, str]],
    *,
    parallel: bool,
    otherwise: str | None,
) -> str:
    """The answer is tool calls, or what `otherwise` says.

    calls: each function with its arguments rule (`json_rule`). otherwise: None where a call must come, "text" for
    free text that calls may follow, or a `json_rule` for an answer that is either calls or JSON.
    """
    begin = syntax.begin if otherwise in (None, "text") else _json_pieces(syntax.begin)
    call = _sequence(begin) + ["("] + _join(calls, syntax) + [")"] + _sequence(syntax.end)
    again = _sequence(syntax.between) + ["call"]
    lines = [f"call: {' '.join(call)}", "TEXT: /(.|\\n)*/"]
    lines += [f"args_{i}: {rule}" for i, (_, rule) in enumerate(calls)]
    lines.append(f"calls: call ({' '.join(again)}){{0,{MAX_CALLS - 1}}}" if parallel else "calls: call")
    if otherwise is None:
        lines.append("start: calls")
    elif otherwise != "text":
        lines += [f"answer: {otherwise}", "start: calls | answer"]
    elif isinstance(syntax.begin[0], Control):
        lines.append("start: TEXT | TEXT calls")
    else:
        lines += _triggered(syntax, calls, again, parallel=parallel)
    return "\n".join(lines) + "\n"


def _triggered(
    syntax: CallSyntax, calls: Sequence[tuple[CallRule, str]], again: list[str], *, parallel: bool
) -> list[str]:
    """Free text until the literal that begins a call; the lazy lexeme ends where that literal is complete."""
    first = syntax.begin[0]
    assert isinstance(first, str)
    rest = _sequence(syntax.begin[1:]) + ["("] + _join(calls, syntax) + [")"] + _sequence(syntax.end)
    more = f"({' '.join(again)}){{0,{MAX_CALLS - 1}}}" if parallel else ""
    return [
        f"head[lazy]: TEXT {json.dumps(first)}",
        f"start: TEXT | head {' '.join(rest)} {more}",
    ]


def _json_pieces(parts: tuple[str | Control, ...]) -> tuple[str | Control, ...]:
    """The syntax with its literals cut where JSON's own lexemes end.

    Lexemes are matched greedily: a call that begins with `{"name": "` as one would shut out the JSON answer that
    begins with `{` just as well.
    """
    pieces: list[str | Control] = []
    for part in parts:
        pieces += [part] if isinstance(part, Control) else re.findall(r'"\w*"|[{}\[\]:,]|[^{}\[\]:,"]+|"', part)
    return tuple(pieces)


def _join(calls: Sequence[tuple[CallRule, str]], syntax: CallSyntax) -> list[str]:
    """`name middle arguments` of every function, as alternatives.

    A literal that follows the name is joined to it: one lexeme cannot be mistaken for another function whose
    name begins the same.
    """
    words: list[str] = []
    middle = list(syntax.middle)
    joined = middle.pop(0) if middle and isinstance(middle[0], str) else ""
    assert isinstance(joined, str)
    for i, (call, _) in enumerate(calls):
        if i:
            words.append("|")
        words += [json.dumps(call.name + joined), *_sequence(tuple(middle)), f"args_{i}"]
    return words


def _sequence(parts: tuple[str | Control, ...]) -> list[str]:
    return [f"<[{part.id}]>" if isinstance(part, Control) else json.dumps(part) for part in parts if part != ""]
