"""The learned part of the filters: windows, features, abstaining, and that the recipe learns what is there to learn."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.data.corpus.content import ADULT, HATE, SPAM
from smelt.data.corpus.documents import Document
from smelt.data.corpus.labelled import Labelled
from smelt.data.corpus.learned import MAX_WINDOWS, MIN_NGRAMS, NUM_BUCKETS, Learned, features, learned, windows
from smelt.data.corpus.page import Page

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "filters.py"


@given(st.text(max_size=9000), st.sampled_from(["en", "zh"]))
def test_windows_cover_both_ends_and_are_few(text: str, language: str) -> None:
    found = list(windows(text, language))
    plain = " ".join(text.split())
    assert 1 <= len(found) <= MAX_WINDOWS
    assert plain.startswith(found[0]) and plain.endswith(found[-1])
    assert len({len(one) for one in found}) == 1
    if len(plain) <= MAX_WINDOWS * len(found[0]):
        assert sum(map(len, found)) >= len(plain)


@given(st.text(max_size=300))
def test_features_have_length_one_and_know_no_case_and_no_digits(text: str) -> None:
    ids, values = features(text)
    assert len(ids) == len(values) == len(set(ids.tolist()))
    assert all(0 <= one < NUM_BUCKETS for one in ids.tolist())
    assert np.linalg.norm(values) == pytest.approx(1 if text else 0, abs=1e-5)
    shouted = "".join(char.upper() if char.isascii() else char for char in text).replace("1", "7")
    same = features(shouted)
    assert np.array_equal(ids, same[0])
    np.testing.assert_allclose(values, same[1])


def test_features_are_the_n_grams_counted_one_by_one() -> None:
    """The slow twin: n-grams as strings in a dictionary; no two of these share a bucket."""
    text = "Rain falls on 12 roofs, rain falls."
    plain = text.lower().replace("1", "0").replace("2", "0")
    counts: dict[str, int] = {}
    for size in range(1, 6):
        for at in range(len(plain) - size + 1):
            counts[plain[at : at + size]] = counts.get(plain[at : at + size], 0) + 1
    expected = np.log1p(np.sort(list(counts.values())))
    ids, values = features(text)
    assert len(ids) == len(counts)
    np.testing.assert_allclose(np.sort(values), expected / np.linalg.norm(expected), rtol=1e-5)


def test_half_of_the_windows_decide_and_repetition_says_nothing() -> None:
    model = Learned(("x",), np.ones((NUM_BUCKETS, 1), np.float32), np.zeros(1, np.float32), np.ones(1, np.float32))
    prose = Path(__file__).with_name("planted.txt").read_text(encoding="utf-8")
    assert model.shares(prose, "en") == {"x": 1.0}
    assert len(features("la " * 200)[0]) < MIN_NGRAMS
    assert model.shares("la " * 200, "en") == {"x": 0.0}
    assert model.shares("", "en") == {"x": 0.0}


def test_the_weights_of_the_package() -> None:
    found = learned()
    assert found.names == (HATE.name, ADULT.name, SPAM.name)
    assert found.weights.shape == (NUM_BUCKETS, 3)
    assert np.isfinite(found.weights).all() and (found.limits > found.biases).all()


def test_short_pages_are_left_to_the_lists() -> None:
    assert Page(Document(text="Too short.", source="t", language="en", key="1")).learned_shares == {}


def test_the_recipe_learns_what_sets_documents_apart_and_twice_the_same() -> None:
    """Three invented filters, each with words of its own, in documents that otherwise are alike."""
    recipe = runpy.run_path(str(RECIPE), run_name="recipe")
    rng = np.random.default_rng(0)
    common = "stone river lamp window bread winter boat garden music letter street morning".split()
    own = {"hate": "zorn krawall", "adult": "velvet blush", "spam": "bargain voucher", "keep": "quiet harbour"}
    documents = []
    for number in range(8):
        for label, words in own.items():
            text = " ".join(rng.permutation(common * 4 + words.split() * 4))
            document = Document(text=text, source="t", language="en", key=f"{label}{number}")
            documents.append(Labelled(document=document, label=label, kind="k", theme=f"{label} {number}"))
    real = [features(" ".join(rng.permutation(common * 4))) for _ in range(20)]
    stored, report = recipe["made"](documents, real)
    for name in ("hate", "adult", "spam"):
        assert report[name]["recall"] == [8, 8]
        assert report[name]["clean_taken"][0] == report[name]["real_taken"][0] == 0
    again, _ = recipe["made"](documents, real)
    assert all(np.array_equal(stored[key], again[key]) for key in stored)
    assert stored["weights"].dtype == np.int8
