"""Fine-tuning jobs: a folder that answers as it was shown, named by its card, resumable, and no other job's."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import open_checkpoint
from smelt.core.errors import CheckpointError, DataError, InvalidRequestError, TrainingStoppedError
from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.generate.llm import LLM
from smelt.train.config import ScheduleConfig, TrainConfig
from smelt.train.finetune.data import AnswerStream, plan
from smelt.train.finetune.job import EpochDone, FineTuneConfig, FineTuned, Watch, fine_tune
from smelt.train.lineage import broken_at
from smelt.train.report import Report
from tests.tiny import make_tiny_folder

WORDS = ("weather", "Berlin", "today", "Paris")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("base") / "tiny", num_layers=2, dtype="BF16")


def chats(path: Path, *, weight: int | None = None) -> Path:
    """Each word is asked for and said."""
    lines = []
    for word in WORDS:
        answer: dict[str, Any] = {"role": "assistant", "content": word}
        earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hm", "weight": weight}]
        turns = [] if weight is None else earlier
        lines.append(json.dumps({"messages": [*turns, {"role": "user", "content": f"Say {word}"}, answer]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def pairs(path: Path) -> Path:
    lines = []
    for word, other in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True):
        answers = [[{"role": "assistant", "content": text}] for text in (word, other)]
        asked = {"messages": [{"role": "user", "content": f"Say {word}"}]}
        lines.append(json.dumps({"input": asked, "preferred_output": answers[0], "non_preferred_output": answers[1]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def tuned(base: Path, training: Path, out: Path, **changes: Any) -> FineTuned:
    watch = changes.pop("watch", Watch(on_report=lambda _: None))
    fields = {"epochs": 15, "batch_size": 4, "learning_rate_multiplier": 10.0, **changes}
    return fine_tune(base, training, out, FineTuneConfig(**fields), validation=training, watch=watch)


@pytest.fixture(scope="module")
def supervised(base: Path, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    folder = tmp_path_factory.mktemp("supervised")
    return tuned(base, chats(folder / "train.jsonl"), folder / "job")


def test_it_answers_as_it_was_shown(supervised: FineTuned) -> None:
    llm = LLM.load(supervised.folder)
    try:
        for word in WORDS:
            request = ChatRequest(
                messages=(Message.of("user", f"Say {word}"),), params=SamplingParams(temperature=0.0, max_tokens=12)
            )
            assert llm.chat(request).message.text == word
    finally:
        llm.close()


def test_the_card_says_before_and_after_and_the_lineage_goes_on(base: Path, supervised: FineTuned) -> None:
    card = json.loads((supervised.folder / "card.json").read_text())
    assert card["name"] == "tiny-ft"
    assert card["base"]["fingerprint"] == open_checkpoint(base).fingerprint
    found = card["validation"]
    assert found["num_examples"] == len(WORDS)
    assert found["after"]["loss"] < 0.2 * found["before"]["loss"]
    assert found["after"]["logs"]["accuracy"] > 0.9 > found["before"]["logs"]["accuracy"]
    chain = json.loads((supervised.folder / "lineage.json").read_text())["chain"]
    assert [step["step"] for step in chain] == ["base", "fine-tune", "weights"]
    assert broken_at(chain) is None
    assert open_checkpoint(supervised.folder).stored_dtypes == {"BF16"}


def test_a_second_tuning_keeps_the_first_ones_lineage(supervised: FineTuned, tmp_path: Path) -> None:
    again = tuned(supervised.folder, chats(tmp_path / "t.jsonl"), tmp_path / "job", epochs=1)
    chains = [
        json.loads((folder / "lineage.json").read_text())["chain"] for folder in (supervised.folder, again.folder)
    ]
    assert chains[1][: len(chains[0])] == chains[0]
    assert [step["step"] for step in chains[1][3:]] == ["base", "fine-tune", "weights"]
    changed = json.loads((again.folder / "lineage.json").read_text())
    changed["chain"][1]["tokens"] = 1
    (again.folder / "lineage.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="was changed: entry 1"):
        tuned(again.folder, chats(tmp_path / "t.jsonl"), tmp_path / "third", epochs=1)


def test_preference_pairs_are_learned(base: Path, tmp_path: Path) -> None:
    reports: list[Report] = []
    epochs: list[EpochDone] = []
    found = tuned(
        base,
        pairs(tmp_path / "p.jsonl"),
        tmp_path / "job",
        method="dpo",
        epochs=6,
        learning_rate_multiplier=20.0,
        watch=Watch(on_report=reports.append, on_epoch=epochs.append),
    )
    assert reports[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert found.before is not None
    assert found.after is not None
    assert found.before.loss == pytest.approx(math.log(2), abs=1e-6)
    assert found.before.logs["accuracy"] < 1.0
    assert found.after.logs["accuracy"] == 1.0
    assert found.after.logs["margin"] > 0.1
    assert [done.epoch for done in epochs] == list(range(1, 7))
    assert len(list((tmp_path / "job" / "references").glob("*.npy"))) == 1  # one file, used for both


def test_a_stopped_job_goes_on_to_the_same_weights(base: Path, tmp_path: Path) -> None:
    training = chats(tmp_path / "t.jsonl")
    whole = tuned(base, training, tmp_path / "whole", epochs=4)
    stopping = threading.Event()

    def stop(report: Report) -> None:
        if report.step == 2:
            stopping.set()

    with pytest.raises(TrainingStoppedError):
        tuned(base, training, tmp_path / "pieces", epochs=4, watch=Watch(on_report=stop, stopping=stopping))
    rest: list[int] = []
    pieces = tuned(
        base, training, tmp_path / "pieces", epochs=4, watch=Watch(on_report=lambda report: rest.append(report.step))
    )
    assert rest == [3, 4]
    one, other = (open_checkpoint(found.folder).tensors for found in (whole, pieces))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert pieces.after == whole.after


def test_small_changes_survive_in_float32(base: Path, tmp_path: Path) -> None:
    """bf16 keeps eight bits of a weight: at a small rate, half of the changes round away (spark, 3 steps: validation
    5.76 in memory, 6.27 as stored)."""
    training = chats(tmp_path / "t.jsonl")
    before = open_checkpoint(base).tensors
    moved = {}
    for store in ("base", "F32"):
        out = tmp_path / store
        found = tuned(base, training, out, epochs=1, learning_rate_multiplier=0.1, store=store)
        after = open_checkpoint(found.folder)
        assert after.stored_dtypes == {"BF16" if store == "base" else "F32"}
        moved[store] = np.mean([float((after.tensors[name] != before[name]).mean()) for name in before])
    assert moved["F32"] > 0.9
    assert moved["base"] < 0.8 * moved["F32"]


def test_another_jobs_folder_is_refused(base: Path, tmp_path: Path) -> None:
    training = chats(tmp_path / "t.jsonl")
    tuned(base, training, tmp_path / "job", epochs=1)
    with pytest.raises(CheckpointError, match="another job: config differ"):
        tuned(base, training, tmp_path / "job", epochs=2)
    with pytest.raises(CheckpointError, match="training_sha256, validation_sha256 differ"):
        tuned(base, chats(training, weight=1), tmp_path / "job", epochs=1)


def test_a_turn_of_weight_0_is_context(base: Path, tmp_path: Path) -> None:
    from smelt.chat import renderer_of_folder
    from smelt.tokenizer import Tokenizer
    from smelt.train.finetune.data import read_documents

    tokenizer = Tokenizer.load(base)
    renderer = renderer_of_folder(tokenizer)
    learned = []
    for weight in (0, 1):
        file = chats(tmp_path / f"{weight}.jsonl", weight=weight)
        documents = read_documents(file, "supervised", tokenizer, renderer, 1, 256).answers
        learned.append([[i for i, bit in zip(d.ids, d.loss_mask, strict=True) if bit] for d in documents])
    assert learned[0] != learned[1]
    said = tokenizer.encode("Hm")
    assert [row[len(said) + 1 :] for row in learned[1]] == learned[0]


def test_a_file_of_the_other_kind_and_examples_cut_to_nothing_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1"):
        tuned(base, pairs(tmp_path / "p.jsonl"), tmp_path / "job")
    with pytest.raises(DataError, match="input"):
        tuned(base, chats(tmp_path / "t.jsonl"), tmp_path / "job", method="dpo")
    with pytest.raises(DataError, match="left of 4 examples cut at 3 ids"):
        tuned(base, tmp_path / "t.jsonl", tmp_path / "job", max_len=3)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"epochs": 51}, {"batch_size": 300}, {"learning_rate_multiplier": 0.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        FineTuneConfig(**wrong)


@pytest.mark.parametrize(
    ("lengths", "asked", "found"),
    [
        ([100] * 10, (None, None), (10, 4, 4, 1, 3)),
        ([100] * 2, (None, None), (25, 2, 2, 1, 1)),
        ([100] * 1000, (None, None), (3, 4, 4, 1, 250)),
        ([100] * 30_000, (None, None), (1, 60, 60, 1, 500)),
        ([100] * 10, (3, 8), (3, 8, 8, 1, 2)),
        ([3000] * 10, (3, 8), (3, 8, 2, 4, 1)),
        ([60_000] * 10, (1, 4), (1, 4, 1, 4, 2)),
    ],
)
def test_plans(lengths: list[int], asked: tuple[int | None, int | None], found: tuple[int, ...]) -> None:
    assert dataclasses.astuple(plan(lengths, *asked, batch_tokens=8192)) == found


def test_an_epoch_shows_every_conversation_once() -> None:
    from smelt.data.batches import Encoded

    answers = [Encoded([i, 1, 2], b"\0\1\1", b"233") for i in range(10, 17)]
    stream = AnswerStream(answers=answers, pad_id=0, examples_per_batch=3, seed=0)
    seen = [int(i) for batch in stream.chunk(0) for i in batch.inputs[0] if i >= 10]
    assert sorted(seen) == list(range(10, 17))
    assert seen != [int(i) for batch in stream.chunk(1) for i in batch.inputs[0] if i >= 10]


def test_workers_change_nothing_but_rounding(base: Path, tmp_path: Path) -> None:
    training = chats(tmp_path / "t.jsonl")
    how = TrainConfig(schedule=ScheduleConfig(total_steps=1), workers=2, log_every=1)
    config = FineTuneConfig(epochs=2, batch_size=4, batch_tokens=64)
    watch = Watch(on_report=lambda _: None)
    found = [
        fine_tune(base, training, tmp_path / name, config, validation=training, watch=watch, how=given).after
        for name, given in (("two", how), ("one", None))
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-3)
