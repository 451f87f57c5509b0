"""Tables: what stands in a line, and that cards of before can still be read."""

from __future__ import annotations

from typing import Any

import pytest

from smelt.evals.table import score, table


def share(value: float, n: int = 100) -> dict[str, Any]:
    return {"value": value, "n": n, "interval95": [max(0.0, value - 0.1), min(1.0, value + 0.1)]}


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"exact": share(0.5), "tool_choice": share(0.8)}, "50% (40-60), right tool 80%"),
        ({"exact": share(0.5), "field_f1": 0.9}, "50% (40-60), parts F1 0.90"),
        ({"exact": share(0.5), "field_f1": share(0.9)}, "50% (40-60), parts F1 0.90"),
        ({"exact": share(0.5), "field_f1": share(0.5)}, "50% (40-60)"),
        ({"exact": share(0.2), "f1": share(0.4)}, "F1 40% (30-50), exact 20%"),
        ({"exact": share(0.2), "loose": share(0.3), "cut": 2}, "20% (10-30), loose 30%, 2 cut at the length limit"),
        ({"exact": share(0.0, 0), "not_asked": 3}, "-, 3 did not fit or were refused"),
        ({"bits_per_byte": share(0.9)}, "0.900 bits per byte (0.800-1.000)"),
    ],
)
def test_scores_in_words(row: dict[str, Any], shown: str) -> None:
    assert score(row) == shown


def test_every_line_has_what_knowing_nothing_scores() -> None:
    compressors = {"xz": 2.5, "byte_frequencies": 4.5}
    found = {
        "bpb": {"all": {"bits_per_byte": share(0.9), "control": compressors}},
        "classify": {"all": {"exact": share(0.9), "chance": 0.25}},
        "facts": {"all": {"exact": share(0.9)}},
    }
    control = {"facts": {"all": {"exact": share(0.1)}}, "bpb": {"all": {"bits_per_byte": share(0.7)}}}
    lines = table(found, control=control).splitlines()
    assert "| random weights 0.70, xz 2.50, byte frequencies 4.50 |" in lines[2]
    assert "| chance 25% |" in lines[3]
    assert "| random weights 10% |" in lines[4]
    assert "seconds" not in lines[0]


def test_names_choose_suites_and_their_words() -> None:
    found = {"a": {"all": {"exact": share(0.5), "seconds": 1.0, "tokens": [3, 4]}}, "b": {"all": {"exact": share(0.5)}}}
    lines = table(found, names={"a": "what a is", "gone": "x"}).splitlines()
    assert len(lines) == 3
    assert lines[2] == "| what a is | 50% (40-60) | 100 |  | 1.0 | 3 / 4 |"
