"""Regular expressions from strangers: what can be said against one before any engine compiles it."""

from __future__ import annotations

import re
from typing import Any

MAX_PATTERN_LEN = 2_000
MAX_GROUP_DEPTH = 50
_BACKREFERENCE = tuple("123456789k")
_GROUP_HEADER = re.compile(r"\((\?[a-zA-Z-]*:|\?P?<[a-zA-Z_]\w*>)")


def pattern_problem(pattern: Any) -> str | None:
    """Why `pattern` is refused, or None. Syntax itself is llguidance's to judge.

    Refused: very long ones, deep groups, lookarounds and back-references (no automaton has them), and a repeated
    group that is nothing but a repetition, `(a+)+`: it means no more than `a+`, and a backtracking validator
    at the client would take exponential time over our answer.
    """
    if not isinstance(pattern, str):
        return "'pattern' must be a string."
    if len(pattern) > MAX_PATTERN_LEN:
        return f"'pattern' has {len(pattern)} characters; at most {MAX_PATTERN_LEN} can be honoured."
    depth = 0
    groups: list[_Group] = [_Group()]
    for kind in _pieces(pattern):
        if kind == "lookaround":
            return "'pattern' uses a lookaround, which is not supported."
        if kind == "backreference":
            return "'pattern' uses a back-reference, which is not supported."
        if kind == "open":
            depth += 1
            groups.append(_Group())
            if depth > MAX_GROUP_DEPTH:
                return f"'pattern' nests groups deeper than {MAX_GROUP_DEPTH}."
        elif kind == "close":
            depth -= 1
            if depth < 0:
                return "'pattern' closes a group that was never opened."
            inner = groups.pop()
            repeats = inner.last_repeats or inner.last_is_repetition
            groups[-1].atom(is_repetition=inner.num_atoms == 1 and repeats and not inner.alternation)
        elif kind == "repeat":
            if groups[-1].last_is_repetition:
                return "'pattern' repeats a repetition, like (a+)+; write it once."
            groups[-1].last_repeats = True
        elif kind == "or":
            groups[-1].alternation = True
        else:
            groups[-1].atom(is_repetition=False)
    return None if depth == 0 else "'pattern' leaves a group open."


class _Group:
    """What was seen within one pair of parentheses."""

    def __init__(self) -> None:
        self.num_atoms = 0
        self.alternation = False
        self.last_repeats = False
        self.last_is_repetition = False

    def atom(self, *, is_repetition: bool) -> None:
        self.num_atoms += 1
        self.last_repeats = False
        self.last_is_repetition = is_repetition


def _pieces(pattern: str) -> list[str]:
    """The pattern as kinds of pieces: open, close, repeat (unbounded), or, atom, lookaround, backreference."""
    pieces: list[str] = []
    i, in_class = 0, False
    while i < len(pattern):
        c = pattern[i]
        if c == "\\":
            if not in_class:
                pieces.append("backreference" if pattern[i + 1 : i + 2] in _BACKREFERENCE else "atom")
            i += 2
            continue
        if in_class:
            in_class = c != "]"
        elif c == "[":
            in_class = True
            pieces.append("atom")
            i += 2 if pattern[i + 1 : i + 2] == "^" else 1
            if pattern[i : i + 1] == "]":
                i += 1
            continue
        elif c == "(":
            lookaround = pattern.startswith(("(?=", "(?!", "(?<=", "(?<!"), i)
            pieces.append("lookaround" if lookaround else "open")
            if header := _GROUP_HEADER.match(pattern, i):
                i = header.end()
                continue
        elif c == "{":
            end = pattern.find("}", i)
            if end > 0 and pattern[i + 1 : end].rstrip().endswith(","):
                pieces.append("repeat")
            i = end if end > 0 else i
        elif c not in "^$?":
            pieces.append({")": "close", "*": "repeat", "+": "repeat", "|": "or"}.get(c, "atom"))
        i += 1
    return pieces
