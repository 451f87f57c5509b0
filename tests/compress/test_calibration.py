"""Calibration from files, corpora, streams and the model's own text: what is taken, how it begins, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress import self_text
from smelt.compress.calibration import (
    Calibration,
    CalibrationConfig,
    calibration_of_stream,
    load_calibration,
)
from smelt.compress.stage import Progress
from smelt.core.errors import DataError, InvalidRequestError
from smelt.core.messages import Privilege
from smelt.data.batches import Batch
from smelt.data.corpus.documents import Document
from smelt.data.corpus.shards import line_of, pack
from smelt.tokenizer import Tokenizer
from smelt.train.distill.on_policy import documents
from tests.tiny import make_tiny_folder

SMALL = CalibrationConfig(num_sequences=6, max_len=32, least_tokens=20, batch_tokens=64)
WORDS = "one two three four five six seven eight nine ten "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Its texts begin with the begin id, as those of our own models do."""
    folder = make_tiny_folder(tmp_path_factory.mktemp("model") / "tiny", num_layers=1)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    return open_checkpoint(folder)


def written(folder: Path, name: str, *lines: object) -> str:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def ids_of(found: Calibration) -> list[list[int]]:
    """Every document's inputs."""
    return [ids.tolist() for batch in found.batches for ids, _ in documents(batch)]


def chat(*texts: str) -> dict[str, object]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


def test_a_text_file_becomes_windows_that_begin_as_texts_do(model: Checkpoint, tmp_path: Path) -> None:
    text = "<|bos|><|end|>" + " ".join(f"number {i} is {i * i}," for i in range(60))
    found = load_calibration(written(tmp_path, "mine.txt", text), model, SMALL)
    tokenizer = Tokenizer.load(model.folder)
    sequences = ids_of(found)
    assert len(sequences) == 6
    whole = tokenizer.encode(text)
    for ids in sequences:
        assert ids[0] == model.config.bos_id and ids.count(ids[0]) == 1  # once; the text could not spell it
        assert len(ids) <= 32
        assert any(whole[at : at + len(ids) - 1] == ids[1:] for at in range(len(whole)))
    assert len({tuple(ids) for ids in sequences}) == 6
    assert found.num_tokens == sum(map(len, sequences))
    assert found.source == f"6 sequences of mine.txt, {found.num_tokens} tokens"
    assert all((batch.privileges[batch.segment_ids >= 0] == Privilege.ASSISTANT).all() for batch in found.batches)
    assert all(batch.inputs.size <= 64 for batch in found.batches)


def test_json_lines_of_texts_give_one_window_of_each_before_a_second_of_any(model: Checkpoint, tmp_path: Path) -> None:
    texts = [{"text": f"{name} " + WORDS * (30 if name == "alpha" else 1)} for name in ("alpha", "beta", "gamma")]
    found = load_calibration(written(tmp_path, "texts.jsonl", *texts), model, SMALL)
    decoded = [Tokenizer.load(model.folder).decode(ids) for ids in ids_of(found)]
    assert len(decoded) == 6
    assert any("beta" in text for text in decoded) and any("gamma" in text for text in decoded)


def test_more_texts_than_asked_for_are_sampled_alike(model: Checkpoint, tmp_path: Path) -> None:
    lines = [{"text": f"number {i} {WORDS}"} for i in range(40)]
    spec = written(tmp_path, "many.jsonl", *lines)
    first, again = load_calibration(spec, model, SMALL), load_calibration(spec, model, SMALL)
    other = load_calibration(spec, model, dataclasses.replace(SMALL, seed=1))
    assert first.digest == again.digest != other.digest
    assert len(ids_of(first)) == 6


def test_conversations_go_through_the_chat_format_with_one_begin(model: Checkpoint, tmp_path: Path) -> None:
    spec = written(tmp_path, "chats.jsonl", *(chat(f"Say {i}.", f"{i} it is.") for i in range(4)))
    found = load_calibration(spec, model, SMALL)
    controls = Tokenizer.load(model.folder).control_ids
    for ids in ids_of(found):
        assert ids[:2] == [controls["<|bos|>"], controls["<|user|>"]]
        assert ids.count(controls["<|bos|>"]) == 1 and ids.count(controls["<|assistant|>"]) == 1
    said = np.concatenate([batch.privileges[batch.segment_ids >= 0] for batch in found.batches])
    assert {Privilege.SYSTEM, Privilege.USER, Privilege.ASSISTANT} == set(said.tolist())
    completions = [{"prompt": f"One, two, {i},", "completion": " three, four, five, six, seven."} for i in range(3)]
    found = load_calibration(written(tmp_path, "plain.jsonl", *completions), model, SMALL)
    assert all(ids[0] == controls["<|bos|>"] for ids in ids_of(found))


def test_what_is_there_twice_is_taken_once(model: Checkpoint, tmp_path: Path) -> None:
    lines = [chat("Say one two three.", "One two three it is.")] * 5
    with pytest.raises(DataError, match=r"different sequences of 32, found \d+ in 1"):
        load_calibration(written(tmp_path, "same.jsonl", *lines), model, dataclasses.replace(SMALL, least_tokens=60))


def test_loops_are_told(model: Checkpoint, tmp_path: Path) -> None:
    lines = [{"text": "ha " * 40}, {"text": " ".join(f"{i} times {i} is {i * i}." for i in range(20))}]
    found = load_calibration(written(tmp_path, "loops.jsonl", *lines), model, dataclasses.replace(SMALL, max_len=60))
    loops = [ids for ids in ids_of(found) if len(ids) == 60 and len(set(ids)) < 6]
    assert loops and found.source.endswith(f"({len(loops)} of them loops of a few tokens)")


def test_long_conversations_are_cut(model: Checkpoint, tmp_path: Path) -> None:
    found = load_calibration(written(tmp_path, "long.jsonl", chat(WORDS * 20, "Yes.")), model, SMALL)
    assert [len(ids) for ids in ids_of(found)] == [32]


def test_sequences_are_no_longer_than_the_context(tmp_path: Path) -> None:
    short = open_checkpoint(make_tiny_folder(tmp_path / "short", num_layers=1, context_len=16))
    found = load_calibration(written(tmp_path, "mine.txt", WORDS * 30), short, SMALL)
    assert max(len(ids) for ids in ids_of(found)) == 16


def test_wrong_or_too_little_is_refused_with_what_would_be_right(model: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="sought `self`, a text or JSONL file, or a corpus folder"):
        load_calibration(str(tmp_path / "absent.txt"), model, SMALL)
    with pytest.raises(InvalidRequestError, match=r"picture.png: sought a file that ends in"):
        load_calibration(written(tmp_path, "picture.png", "x"), model, SMALL)
    with pytest.raises(InvalidRequestError, match="no finished corpus"):
        load_calibration(str(tmp_path), model, SMALL)
    with pytest.raises(DataError, match=r"sought 20 tokens at least.* found \d+ in 1; .*let the model write it"):
        load_calibration(written(tmp_path, "little.txt", "few"), model, SMALL)
    with pytest.raises(DataError, match="found 0 in 0"):
        load_calibration(written(tmp_path, "empty.txt", ""), model, SMALL)
    with pytest.raises(DataError, match=r"line 1, messages\[0\].role"):
        load_calibration(written(tmp_path, "bad.jsonl", {"messages": [{"role": "x"}]}), model, SMALL)
    with pytest.raises(InvalidRequestError, match="temperature is 0"):
        CalibrationConfig(temperature=0)


def test_a_stream_gives_its_first_rows(model: Checkpoint) -> None:
    class Counting:
        def chunk(self, number: int) -> list[Batch]:
            ids = np.full((2, 8), number)
            return [Batch(ids, ids), Batch(ids, ids)]

    class Empty:
        def chunk(self, number: int) -> list[Batch]:
            return []

    found = calibration_of_stream(Counting(), "a shard", dataclasses.replace(SMALL, num_sequences=5))
    assert [batch.inputs[:, 0].tolist() for batch in found.batches] == [[0, 0], [0, 0], [1]]
    assert found.source == "5 rows of a shard, 40 tokens"
    with pytest.raises(DataError, match="found 0 in 0"):
        calibration_of_stream(Empty(), "nothing", SMALL)


def test_the_model_writes_the_same_again_and_only_what_is_missing(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_text, "_ROWS", 4)
    config = dataclasses.replace(SMALL, num_sequences=10, least_tokens=20)
    told: list[Progress] = []
    first = load_calibration("self", model, config, scratch=tmp_path, on_progress=told.append)
    assert [one.done for one in told] == [4, 8, 10] and told[-1].left_s == 0
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 3
    kept[1].unlink()
    told.clear()
    again = load_calibration("self", model, config, scratch=tmp_path, on_progress=told.append)
    assert len(told) == 1
    assert first.digest == again.digest == load_calibration("self", model, config).digest
    assert first.digest != load_calibration("self", model, dataclasses.replace(config, seed=1)).digest
    controls = Tokenizer.load(model.folder).control_ids
    sequences = self_text.written_by(model, config, scratch=tmp_path)
    assert all(one.ids[0] == controls["<|bos|>"] and len(one.ids) <= 33 for one in sequences)
    assert all(len(one.ids) == len(one.loss_mask) == len(one.privileges) for one in sequences)
    chats = [one for one in sequences[4:8] if controls["<|assistant|>"] in one.ids]
    assert chats  # the second batch are conversations
    assert all(one.ids[1] == controls["<|user|>"] and one.privileges[1] == Privilege.USER for one in chats)
    inside = frozenset(controls.values()) - {controls["<|end|>"]}
    assert all(not inside & set(one.ids[1:]) for one in sequences[:4])  # text, not one control id after the other
    assert all(len(one.ids) > 8 for one in sequences)
    assert "text of the model itself at temperature 0.8" in first.source


def test_a_model_with_privileges_writes_too(tmp_path: Path) -> None:
    folder = make_tiny_folder(tmp_path / "said", family="qwen3", num_layers=1, num_privileges=6)
    found = load_calibration("self", open_checkpoint(folder), SMALL)
    assert found.num_tokens >= 20


def test_a_corpus_folder_gives_documents_of_its_own(model: Checkpoint, tmp_path: Path) -> None:
    texts = [f"document {i} {WORDS}" for i in range(9)]
    lines = [line_of(Document(text=text, source="notes", language="en", key=text[:10])) for text in texts]
    (tmp_path / "shard.zst").write_bytes(pack(lines))
    shard = {"file": "shard.zst", "source": "notes", "split": "train", "num_documents": 9}
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": [shard]}))
    found = load_calibration(str(tmp_path), model, SMALL)
    decoded = [Tokenizer.load(model.folder).decode(ids) for ids in ids_of(found)]
    assert len(decoded) == 6 and all(any(one in text for text in texts) for one in decoded)
    assert found.source.startswith(f"6 sequences of the corpus {tmp_path.name}")
