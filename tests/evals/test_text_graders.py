"""Numbers however they are written; spans by words, or by characters where there are no words."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.evals.text_graders import grade_number, grade_span, number, numbers


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("18", "18"),
        ("-3", "-3"),
        ("1,234", "1234"),
        ("1,234,567", "1234567"),
        ("1.234.567", "1234567"),
        ("1,234.50", "1234.5"),
        ("1.234,50", "1234.5"),
        ("0.125", "0.125"),
        ("3,5", "3.5"),
        ("１２", "12"),
    ],
)
def test_numbers_are_read_by_value(written: str, value: str) -> None:
    assert number(written) == Decimal(value)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("9 eggs at $2 make 18", True),
        ("The answer is 18.", True),
        ("18.00", True),
        ("#### 18", True),
        ("18 or 19", False),
        ("eighteen", False),
        ("", False),
        ("答案是18。", True),
    ],
)
def test_the_last_number_counts(text: str, right: bool) -> None:
    assert grade_number("18", text).exact is right


@given(st.integers(-(10**9), 10**9))
def test_thousands_marks_change_nothing(value: int) -> None:
    assert numbers(f"is {value:,}") == numbers(f"is {value}") == [Decimal(value).normalize()]


@pytest.mark.parametrize(
    ("accepted", "text", "language", "exact", "f1"),
    [
        (("the Denver Broncos",), "Denver Broncos.", "en", True, 1.0),
        (("Denver Broncos", "Broncos"), "broncos", "en", True, 1.0),
        (("Denver Broncos",), "the Broncos", "en", False, 2 / 3),
        (("der Rhein",), "Rhein", "de", True, 1.0),
        (("丹佛野马",), "丹佛野马。", "zh", True, 1.0),
        (("丹佛野马",), "野马", "zh", False, 2 / 3),
        (("308",), "", "en", False, 0.0),
    ],
)
def test_spans(accepted: tuple[str, ...], text: str, language: str, exact: bool, f1: float) -> None:
    found = grade_span(accepted, text, language)
    assert found.exact is exact
    assert found.f1 == pytest.approx(f1)
