"""Token hashes against a slow twin that splits text with `re`."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smelt.data.corpus.tokens import code_points, ngrams, token_hashes

_TOKEN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff]|[^\W_\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff]+")
TEXTS = st.text(alphabet="abAB zZ19,.-_'ÄäßéＡ海洋水のカ🙂\n", max_size=80)


def slow_tokens(text: str) -> list[str]:
    folded = "".join(unicodedata.normalize("NFKC", c) if "\uff00" <= c < "\ufff0" else c for c in text)
    return [token.lower() for token in _TOKEN.findall(folded)]


def hashes(text: str) -> list[int]:
    return [int(value) for value in token_hashes(code_points(text))]


@given(TEXTS, TEXTS)
def test_equal_words_and_only_those_have_equal_hashes(first: str, second: str) -> None:
    words = slow_tokens(first) + slow_tokens(second)
    found = hashes(first) + hashes(second)
    assert len(found) == len(words)
    assert len(set(zip(words, found, strict=True))) == len(set(words)) == len(set(found))


@given(TEXTS, st.integers(1, 6))
def test_ngrams_are_equal_where_the_words_are(text: str, size: int) -> None:
    words = slow_tokens(text)
    wanted = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    found = [int(value) for value in ngrams(np.array(hashes(text), np.uint64), size)]
    assert len(found) == len(wanted)
    assert len(set(zip(wanted, found, strict=True))) == len(set(wanted)) == len(set(found))


def test_a_word_has_the_same_hash_wherever_it_stands() -> None:
    assert hashes("x " * 5000 + "harbour")[-1] == hashes("HARBOUR")[0]


def test_lone_surrogates_do_no_harm() -> None:
    assert len(hashes("a \ud800 b")) == 2
