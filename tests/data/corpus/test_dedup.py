"""Duplicates against brute force: every pair compared by its words."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from smelt.data.corpus import dedup
from smelt.data.corpus.documents import digest
from smelt.data.corpus.tokens import code_points, token_hashes


def text_of(rng: random.Random, num_words: int = 120) -> list[str]:
    return [f"w{rng.randrange(4000)}" for _ in range(num_words)]


def changed(rng: random.Random, words: list[str], num_changes: int) -> list[str]:
    found = list(words)
    for i in rng.sample(range(len(found)), num_changes):
        found[i] = f"x{rng.randrange(10**6)}"
    return found


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(first: list[str], second: list[str]) -> float:
    one, two = shingles(first), shingles(second)
    return len(one & two) / len(one | two)


def find(texts: list[str]) -> dedup.Duplicates:
    signatures = np.array([dedup.signature(token_hashes(code_points(text))) for text in texts], np.uint32)
    digests = np.array([np.frombuffer(digest(text), "<u8") for text in texts], np.uint64)
    bands = dedup.band_keys(signatures)
    half = len(texts) // 2
    return dedup.find(digests, [[band[:half], band[half:]] for band in bands], signatures)


def test_signatures_estimate_jaccard() -> None:
    rng = random.Random(1)
    for num_changes in (0, 2, 5, 10, 30):
        first = text_of(rng, 400)
        second = changed(rng, first, num_changes)
        pair = [dedup.signature(token_hashes(code_points(" ".join(words)))) for words in (first, second)]
        estimate = dedup.similarity(pair[0][None], pair[1][None])[0]
        assert estimate == pytest.approx(jaccard(first, second), abs=0.16)  # 3.5 sigma of 120 hashes


def test_all_that_goes_nears_something_kept_and_all_that_is_near_goes() -> None:
    rng = random.Random(2)
    words = []
    for _ in range(60):
        base = text_of(rng)
        words.append(base)
        words += [changed(rng, base, rng.choice([0, 1, 1, 6, 20])) for _ in range(rng.randrange(4))]
    rng.shuffle(words)
    texts = [" ".join(w) for w in words]
    found = find(texts)
    gone = set(found.exact.tolist()) | set(found.near.tolist())
    kept = [i for i in range(len(texts)) if i not in gone]
    assert not set(found.exact.tolist()) & set(found.near.tolist())
    for i in found.exact.tolist():
        assert texts[i] in texts[:i]
    for i in found.near.tolist():
        assert any(j < i and jaccard(words[j], words[i]) > 0.65 for j in kept)
    for n, i in enumerate(kept):
        assert all(jaccard(words[j], words[i]) < 0.92 for j in kept[:n])


def test_case_and_white_space_make_no_difference_for_exact_ones() -> None:
    text = "The lamp was lit every evening before the ships came home"
    assert find([text, text.upper().replace(" ", "\n"), text + "!"]).exact.tolist() == [1]


def test_short_and_empty_texts_near_only_their_like() -> None:
    found = find(["one two", "one three", "", "one two!", "a b c d e f g", "a b c d e f h"])
    assert found.exact.tolist() == []
    assert found.near.tolist() == [3]


def test_chinese_is_compared_by_characters() -> None:
    base = (
        "守塔人每天傍晚爬上楼梯，在船只回来之前点亮灯火。他的女儿在窗边数着小船，如果少了一只，她就把它的名字写在石板上。"
        * 2
    )
    assert find([base, base.replace("石板", "木板", 1)]).near.tolist() == [1]
    assert (
        find([base, "冬天的风非常大，他们打不开门，只能靠面包洋葱和茶过日子。有一年春天海鸟飞进了塔里。"]).near.tolist()
        == []
    )


def test_large_buckets_of_like_documents_shrink_to_one() -> None:
    rng = random.Random(3)
    base = text_of(rng, 300)
    texts = [" ".join(changed(rng, base, 1)) for _ in range(200)]
    assert len(find(texts).near) + len(find(texts).exact) == 199


def test_signatures_on_the_disk_are_those_of_the_parts(tmp_path: Path) -> None:
    parts = [np.arange(n * dedup.NUM_HASHES, dtype=np.uint32).reshape(n, dedup.NUM_HASHES) for n in (3, 0, 2)]
    for i, part in enumerate(parts):
        np.save(tmp_path / f"{i}.npy", part)
    whole = dedup.open_signatures(tmp_path / "all", [tmp_path / f"{i}.npy" for i in range(3)], 5)
    assert np.array_equal(whole, np.concatenate(parts))
    assert dedup.open_signatures(tmp_path / "none", [], 0).shape == (0, dedup.NUM_HASHES)
