"""Invented documents for the filters: what must go, and what is only about the same subject and must stay."""

from __future__ import annotations

import re
from pathlib import Path

_TEXT = (Path(__file__).parent / "planted.txt").read_text(encoding="utf-8")
_ALL = [
    (name, language, text.strip())
    for name, language, text in re.findall(r"^=== ([a-z ]+) (\w\w)\n(.*?)(?=^===|\Z)", _TEXT, re.DOTALL | re.MULTILINE)
]
BAD = [one for one in _ALL if one[0] != "keep"]
"""(the filter that must take it, language, text)."""
GOOD = [one[1:] for one in _ALL if one[0] == "keep"]
"""(language, text) about a subject, or full of numbers; none of the four may take it."""
