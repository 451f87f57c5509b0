"""Decontamination against a slow twin over sets of word tuples."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from smelt.data.corpus import decontaminate
from smelt.data.corpus.decontaminate import Index, build_index, evaluation_sets
from smelt.data.corpus.tokens import code_points, token_hashes


def contaminated(index: Index, texts: list[str]) -> dict[int, str]:
    hits = [index.hits(token_hashes(code_points(text))) for text in texts]
    rows = [np.stack([np.full(len(grams), i), grams], axis=1) for i, grams in enumerate(hits)]
    return index.contaminated(np.concatenate([np.empty((0, 2), np.int64), *rows]))


def grams_of(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}


def test_equals_comparing_every_tuple_of_words() -> None:
    rng = random.Random(4)
    questions = [" ".join(f"w{rng.randrange(300)}" for _ in range(rng.randrange(5, 40))) for _ in range(40)]
    texts = []
    for _ in range(60):
        text = " ".join(f"w{rng.randrange(300)}" for _ in range(80))
        if rng.random() < 0.8:
            words = rng.choice(questions).split()
            start = rng.randrange(max(1, len(words) - 12))
            text += " " + " ".join(words[start : start + rng.randrange(8, 20)])
        texts.append(text)
    wanted = set().union(*map(grams_of, questions))
    found = contaminated(build_index([("set", questions)]), texts)
    assert set(found) == {i for i, text in enumerate(texts) if grams_of(text) & wanted}
    assert 5 < len(found) < 55


QUESTION = "A keeper lights nine lamps every evening and seven of them go out before the last ship is home"
CENSUS = "and one in ten had someone living alone who was sixty five years of age or older"


def test_case_and_punctuation_hide_nothing_and_sets_are_named() -> None:
    index = build_index([("eval/sums", [QUESTION]), ("eval/towns", [CENSUS, QUESTION])])
    texts = ["Nothing here.", f"He asked: {QUESTION.upper().replace(' ', '  ,')}?", f"In 2000 {CENSUS}."]
    assert contaminated(index, texts) == {1: "eval/sums", 2: "eval/towns"}


def test_a_phrase_that_many_documents_have_is_no_contamination() -> None:
    index = build_index([("eval/towns", [CENSUS])])
    towns = [f"Town {i} is small, {CENSUS}, and it has a harbour." for i in range(11)]
    assert contaminated(index, towns) == {}
    assert len(contaminated(index, towns[:10])) == 10


def test_a_long_copy_goes_however_common() -> None:
    long = " ".join(f"word{i}" for i in range(60))
    assert len(contaminated(build_index([("eval/long", [long])]), [long] * 20)) == 20


def test_chinese_counts_characters_and_traditional_is_the_same() -> None:
    index = build_index([("eval/zh", ["哥倫比亞總統前往北京訪問並參觀國家體育場"])])
    assert contaminated(index, ["昨天，哥伦比亚总统前往北京访问，并参观。", "哥伦比亚总统访问了北京的体育场。"]) == {
        0: "eval/zh"
    }


def test_short_questions_and_no_sets_drop_nothing() -> None:
    assert contaminated(build_index([("eval/short", ["What is the capital of France"])]), [QUESTION]) == {}
    assert contaminated(build_index([]), [QUESTION]) == {}


def test_an_index_is_the_same_after_saving(tmp_path: Path) -> None:
    index = build_index([("a", [QUESTION]), ("b", [CENSUS])])
    index.save(tmp_path / "index.npz")
    loaded = Index.load(tmp_path / "index.npz")
    assert loaded.names == index.names
    assert contaminated(loaded, [QUESTION, CENSUS]) == {0: "a", 1: "b"}


def test_every_kind_of_file_is_read_and_train_parts_are_not(tmp_path: Path) -> None:
    files = {
        "xquad/xquad.en.json": json.dumps({"data": [{"paragraphs": [{"context": QUESTION}]}]}),
        "bfcl/simple.json": json.dumps({"question": QUESTION}) + "\n" + json.dumps({"question": "short"}) + "\n",
        "gsm8k/test.jsonl": json.dumps({"question": "t " + QUESTION}),
        "gsm8k/train.jsonl": json.dumps({"question": "train"}),
        "mmlu/dev/x.csv": f'question,a\n"c, {QUESTION}",1\n',
        "mgsm/mgsm_de.tsv": f"{QUESTION}\t18\n",
        "tatoeba/tatoeba.deu": QUESTION + "\n",
        "tatoeba/SOURCE.md": "not this",
        "tatoeba/LICENSE.upstream": "nor this",
    }
    for name, text in files.items():
        path = tmp_path / "eval" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found = {name: list(texts) for name, texts in evaluation_sets(tmp_path)}
    assert set(found) == {"eval/xquad", "eval/bfcl", "eval/gsm8k", "eval/mmlu", "eval/mgsm", "eval/tatoeba"}
    assert all(any(QUESTION in text for text in texts) for texts in found.values())
    assert not any(text in ("train", "not this", "nor this") for texts in found.values() for text in texts)


@pytest.mark.slow
def test_real_evaluation_sets_are_found_in_themselves(shared_data: Path) -> None:
    index = build_index(evaluation_sets(shared_data))
    lines = (shared_data / "eval" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:50]
    found = contaminated(index, [json.loads(line)["question"] for line in lines])
    assert len(found) == 50
    assert set(found.values()) == {"eval/gsm8k"}
    assert "dialogue/clinc150" in index.names
    assert decontaminate.NGRAM_LEN == 13
