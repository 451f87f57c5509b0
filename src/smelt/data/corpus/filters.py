"""A filter is a value: a name and a function from a page to a reason for dropping it, or None.

Which filters a source runs is said where the source is (`text_sources`). The seeds' four (hate, adult, sites that
aggregate personal data, spam) run on every source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smelt.data.corpus.page import Page

Rule = Callable[[Page], str | None]


@dataclass(frozen=True, slots=True)
class Filter:
    """`rule` gives the measured value that speaks against a page ("0.41 of lines repeat"), or None to keep it."""

    name: str
    rule: Rule


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a page goes: the filter's name and what it measured."""

    filter: str
    reason: str


def judge(page: Page, filters: Sequence[Filter]) -> Verdict | None:
    """The first filter that speaks against the page; their order decides under which name it is counted."""
    for one in filters:
        if (reason := one.rule(page)) is not None:
            return Verdict(one.name, reason)
    return None
