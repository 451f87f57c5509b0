"""Token shards: what the tokenizer says, made once, by whoever is there, whole or not at all."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from smelt.core.errors import DataError
from smelt.data import shards
from smelt.data.shards import Progress, tokenize_corpus
from tests.data.corpora import make_corpus, tiny_tokenizer
from tests.tiny import tiny_tokenizer_files


def test_every_document_between_its_borders(tmp_path: Path) -> None:
    texts = make_corpus(tmp_path, {"web": [40, 7], "books": [300]})
    tokenizer = tiny_tokenizer()
    bos, end = (tokenizer.control_ids[name] for name in ("<|bos|>", "<|end|>"))
    found = tokenize_corpus(tmp_path, tokenizer)
    sought = [[bos, *tokenizer.encode(text), end] for text in texts["web"] + texts["books"]]
    assert [found.document(i).tolist() for i in range(len(found))] == sought
    assert found.lengths.tolist() == [len(ids) for ids in sought]
    assert found.num_bytes == sum(len(text.encode()) for group in texts.values() for text in group)
    assert found.document(0).dtype == np.uint16
    only = tokenize_corpus(tmp_path, tokenizer, sources=["books"])
    assert [only.document(i).tolist() for i in range(len(only))] == sought[47:]
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 - our own
    assert again.document(46).tolist() == sought[46]


def test_it_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_corpus(tmp_path, {"web": [20, 20, 20]})
    tokenizer = tiny_tokenizer()
    written: list[Path] = []
    write = shards._write

    def dying(source: Path, file: Path, tokenizer: shards.Tokenizer) -> None:
        if len(written) == 1:
            file.with_suffix(".bin.part").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(file)
        write(source, file, tokenizer)

    monkeypatch.setattr(shards, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(tmp_path, tokenizer)
    stamp = written[0].with_suffix(".bin").stat().st_mtime_ns
    monkeypatch.setattr(shards, "_write", write)
    seen: list[Progress] = []
    found = tokenize_corpus(tmp_path, tokenizer, on_progress=seen.append)
    assert written[0].with_suffix(".bin").stat().st_mtime_ns == stamp, "made once"
    assert len(seen) == 2
    assert seen[-1].done_bytes == seen[-1].total_bytes == found.num_bytes
    assert seen[-1].num_tokens == found.lengths.sum()
    assert seen[-1].left_s == 0.0
    assert 0 < seen[0].here_bytes < seen[0].done_bytes
    assert len(found) == 60
    tokenize_corpus(tmp_path, tokenizer, on_progress=seen.append)
    assert len(seen) == 2, "nothing left to do"


def test_several_processes_share_the_work(tmp_path: Path) -> None:
    make_corpus(tmp_path, {"web": [150] * 4})
    tokenizer = tiny_tokenizer()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=tokenize_corpus, args=(tmp_path, tokenizer)) for _ in range(2)]
    for process in processes:
        process.start()
    found = tokenize_corpus(tmp_path, tokenizer)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(found) == 600
    assert found.document(599)[-1] == tokenizer.control_ids["<|end|>"]
    assert not list(tmp_path.glob("tokens-*/*.part"))


def test_another_tokenizer_or_text_makes_other_files(tmp_path: Path) -> None:
    make_corpus(tmp_path, {"web": [5]})
    first = tokenize_corpus(tmp_path, tiny_tokenizer())
    other = shards.Tokenizer.from_json(tiny_tokenizer_files(450)[0]["tokenizer.json"].decode())
    second = tokenize_corpus(tmp_path, other)
    make_corpus(tmp_path, {"web": [5]}, seed=1)
    third = tokenize_corpus(tmp_path, tiny_tokenizer())
    assert len({first.files, second.files, third.files}) == 3
    assert first.files[0].parent != second.files[0].parent


def test_faults_say_what_is_missing(tmp_path: Path) -> None:
    make_corpus(tmp_path, {"web": [5]})
    tokenizer = tiny_tokenizer()
    with pytest.raises(DataError, match="no train documents of books"):
        tokenize_corpus(tmp_path, tokenizer, sources=["web", "books"])
    with pytest.raises(DataError, match="no valid documents"):
        tokenize_corpus(tmp_path, tokenizer, split="valid")
    found = tokenize_corpus(tmp_path, tokenizer)
    path = found.files[0].with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="remove it and rebuild"):
        tokenize_corpus(tmp_path, tokenizer).document(0)
