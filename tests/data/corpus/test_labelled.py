"""What filters and masks are worth on the held-out labelled documents may not fall; how that is counted is right."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from smelt.core.errors import DataError
from smelt.data.corpus.filters import Filter
from smelt.data.corpus.labelled import (
    KEEP,
    Counts,
    Labelled,
    filter_counts,
    mask_counts,
    read_labelled,
    taken,
    unmarked,
)
from smelt.data.corpus.personal import PLACEHOLDERS, Span, find
from smelt.data.corpus.text_sources import SEED_FILTERS

FOLDER = Path(__file__).parent / "labelled"
NAMES = [one.name for one in SEED_FILTERS]
# (recall, precision, share of the hard cases to keep that are taken), a document or two worse than bench/filters.py
# measured: a change of rules, lists or weights that costs more on the held-out part fails here.
FLOORS = {
    "hate": (0.86, 0.80, 0.08),
    "adult": (0.86, 0.80, 0.08),
    "personal data": (0.93, 0.93, 0.03),
    "spam": (0.93, 0.78, 0.10),
    "any": (0.93, 0.86, 0.20),
}
MASK_FLOOR = (0.97, 0.97)


@cache
def held_out() -> tuple[Labelled, ...]:
    return tuple(read_labelled(FOLDER / "held_out.jsonl"))


def below_floor(filters: tuple[Filter, ...]) -> list[str]:
    """The filters (and "any") that do worse than their floor on the held-out part."""
    verdicts = taken(held_out(), filters)
    found = []
    for name, (recall, precision, false_positives) in FLOORS.items():
        one = filter_counts(held_out(), verdicts, name)
        if (
            one.hits < recall * (one.hits + one.misses)
            or one.hits < precision * (one.hits + one.false_alarms)
            or one.on_clean > false_positives * one.num_clean
        ):
            found.append(name)
    return found


def test_filters_hold_their_floor_on_the_held_out_part() -> None:
    assert set(FLOORS) == {*NAMES, "any"}
    assert below_floor(SEED_FILTERS) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_filter_switched_off_is_noticed(name: str) -> None:
    without = tuple(Filter(name, lambda _: None) if one.name == name else one for one in SEED_FILTERS)
    assert name in below_floor(without)
    assert "any" in below_floor(without)


@pytest.mark.parametrize("name", NAMES)
def test_a_filter_that_takes_everything_is_noticed(name: str) -> None:
    greedy = tuple(Filter(name, lambda _: "all") if one.name == name else one for one in SEED_FILTERS)
    assert name in below_floor(greedy)


def test_masks_hold_their_floor_on_the_held_out_part() -> None:
    whole = sum(mask_counts(held_out()).values(), start=Counts(hits=0, misses=0, false_alarms=0))
    assert whole.hits >= MASK_FLOOR[0] * (whole.hits + whole.misses)
    assert whole.hits >= MASK_FLOOR[1] * (whole.hits + whole.false_alarms)


@pytest.mark.parametrize("part", ["develop", "held_out"])
def test_the_documents_cover_every_filter_and_language(part: str) -> None:
    documents = read_labelled(FOLDER / f"{part}.jsonl")
    for language in ("en", "de", "zh"):
        ours = [one for one in documents if one.document.language == language]
        assert all(sum(one.label == name for one in ours) >= 5 for name in NAMES)
        assert 3 * sum(one.label == KEEP for one in ours) >= len(ours)
        assert sum(len(one.spans) for one in ours) >= 10
    assert {one.label for one in documents} == {*NAMES, KEEP}


def test_the_parts_share_no_sentence() -> None:
    develop, ours = (
        {
            sentence.strip()
            for one in read_labelled(FOLDER / f"{part}.jsonl")
            for sentence in one.document.text.replace("。", ".").split(".")
            if len(sentence) > 25
        }
        for part in ("develop", "held_out")
    )
    assert not develop & ours


def test_marks_become_spans() -> None:
    text, spans = unmarked("Ring {{phone|020 7946 0021}} or write to {{email|a@b.zz}}.")
    assert text == "Ring 020 7946 0021 or write to a@b.zz."
    assert spans == [Span(5, 18, "phone"), Span(31, 37, "email")]
    assert find(text) == spans
    assert unmarked("no { marks }") == ("no { marks }", [])


def test_counting(tmp_path: Path) -> None:
    rows = [
        ("a", "one x"),
        ("a", "two"),
        ("b", "three x"),
        (KEEP, "four x"),
        (KEEP, "five {{email|a@b.zz}} {{phone|123}} 91.198.174.192"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"label": a, "language": "en", "kind": "k", "theme": "", "text": t}) + "\n" for a, t in rows)
    )
    documents = read_labelled(path)
    verdicts = taken(documents, [Filter("a", lambda page: "x" if "x" in page.text else None)])
    assert verdicts == [{"a"}, set(), {"a"}, {"a"}, set()]
    assert filter_counts(documents, verdicts, "a") == Counts(hits=1, misses=1, false_alarms=2, on_clean=1, num_clean=2)
    assert filter_counts(documents, verdicts, "any") == Counts(
        hits=2, misses=1, false_alarms=1, on_clean=1, num_clean=2
    )
    masks = mask_counts(documents)
    assert set(masks) == set(PLACEHOLDERS)
    assert (masks["email"], masks["phone"], masks["ip"]) == (
        Counts(hits=1, misses=0, false_alarms=0),
        Counts(hits=0, misses=1, false_alarms=0),
        Counts(hits=0, misses=0, false_alarms=1),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: no JSON object"),
        ('{"label": "keep", "text": "x"}', "exactly the fields kind, label, language, text, theme"),
        ('{"label": "keep", "language": "fr", "kind": "k", "theme": "", "text": "x"}', "'fr' is none of en, de, zh"),
        (
            '{"label": "keep", "language": "en", "kind": "k", "theme": "", "text": "{{name|x}}"}',
            "personal data is called name",
        ),
    ],
)
def test_a_line_that_is_no_labelled_document_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_labelled(path)
