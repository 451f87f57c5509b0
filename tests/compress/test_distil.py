"""Distillation as a stage: it repairs, it goes on after a stop to the bit, and it refuses what cannot be."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from smelt.compress.chain.store import artifact_of
from smelt.compress.distil import Distil, Finetune, layer_pairs
from smelt.compress.quality import quality
from smelt.compress.quantize.rtn import rounded
from smelt.compress.stage import Progress, Work
from smelt.core.errors import InvalidRequestError, TrainingStoppedError, UnsupportedError
from smelt.core.quantization import Scheme
from smelt.model.decoder import Decoder
from smelt.train.finetune.folder import kept_files
from tests.compress.chain.fakes import material, small_source


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(small_source(tmp_path_factory.mktemp("teacher") / "teacher"))


@pytest.fixture(scope="module")
def damaged(teacher: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The teacher with noise on its matrices."""
    rng = np.random.default_rng(0)
    tensors = {
        name: tensor + (0.2 * tensor.std() * rng.standard_normal(tensor.shape)).astype(np.float32)
        for name, tensor in teacher.tensors.items()
    }
    folder = tmp_path_factory.mktemp("damaged") / "damaged"
    save_checkpoint(folder, teacher.config, tensors, files=kept_files(teacher.folder))
    return open_checkpoint(folder)


def work(folder: Path, teacher: Checkpoint, **changes: Any) -> Work:
    folder.mkdir(exist_ok=True)
    (folder / "scratch").mkdir(exist_ok=True)
    fields: dict[str, Any] = {
        "out": folder / "out",
        "scratch": folder / "scratch",
        "material": material(teacher.config.vocab_size),
        "teacher": teacher,
        "say": lambda _: None,
    }
    return Work(**(fields | changes))


def kl(checkpoint: Checkpoint, teacher: Checkpoint) -> float:
    models = [Decoder.from_tensors(each.config, each.tensors) for each in (checkpoint, teacher)]
    return float(quality(models[0], models[1], material(teacher.config.vocab_size))["kl"]["value"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "reverse"},
        {"loss": "jsd", "beta": 0.3},
        {"cache": "sampled"},
        {"cache": "top_k", "cache_k": 200},
        {"hidden": "cosine"},
        {"ratio": 0.9, "batch": 2, "tokens": 1200},
    ],
    ids=str,
)
def test_it_comes_nearer_to_the_teacher_on_text_it_did_not_see(
    teacher: Checkpoint, damaged: Checkpoint, tmp_path: Path, changes: dict[str, Any]
) -> None:
    stage = Distil(**({"steps": 20, "adam_lr": 2e-3, "muon_lr": 5e-3} | changes))
    facts = stage.run(damaged, work(tmp_path, teacher))
    made = open_checkpoint(tmp_path / "out")
    assert kl(made, teacher) < 0.9 * kl(damaged, teacher)
    assert facts["last_loss"] < facts["first_loss"] or "cache" in changes  # drawn ids make a batch's value noisy
    assert facts["steps"] == (19 if "tokens" in changes else 20)
    assert made.config == damaged.config
    assert (made.folder / "tokenizer.json").read_bytes() == (teacher.folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("cache", ["online", "sampled"])
def test_stopped_and_called_again_it_makes_the_same_bytes(
    teacher: Checkpoint, damaged: Checkpoint, tmp_path: Path, cache: Any
) -> None:
    stage = Distil(steps=8, cache=cache, hidden="none")
    stage.run(damaged, work(tmp_path / "whole", teacher))
    stopping = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.unit == "steps" and progress.done >= 3:
            stopping.set()

    with pytest.raises(TrainingStoppedError):
        stage.run(damaged, work(tmp_path / "pieces", teacher, stopping=stopping, on_progress=stop))
    assert not (tmp_path / "pieces" / "out").exists()
    seen: list[int] = []
    going_on = dataclasses.replace(stage, workers=2, checkpoint_s=0.0)
    going_on.run(damaged, work(tmp_path / "pieces", teacher, on_progress=lambda p: seen.append(p.done)))
    whole, pieces = (artifact_of(tmp_path / name / "out") for name in ("whole", "pieces"))
    assert whole.hash == pieces.hash
    assert 1 not in seen or cache != "online", "what was done was not done again"


def test_a_control_forgets_the_weights_and_keeps_the_shape(
    teacher: Checkpoint, damaged: Checkpoint, tmp_path: Path
) -> None:
    stage = Distil(steps=1, fresh=True, muon_lr=0.0, adam_lr=0.0)
    stage.run(damaged, work(tmp_path / "a", teacher))
    stage.run(teacher, work(tmp_path / "b", teacher))
    assert artifact_of(tmp_path / "a" / "out").hash == artifact_of(tmp_path / "b" / "out").hash
    other = dataclasses.replace(stage, seed=1)
    other.run(teacher, work(tmp_path / "c", teacher))
    assert artifact_of(tmp_path / "a" / "out").hash != artifact_of(tmp_path / "c" / "out").hash


def test_text_alone_needs_no_teacher(teacher: Checkpoint, damaged: Checkpoint, tmp_path: Path) -> None:
    facts = Distil(steps=2, ratio=0.0).run(damaged, work(tmp_path, teacher))
    assert facts["objective"] == "ce"
    assert Finetune().name == "finetune"
    assert "ratio=0.5" in Finetune(steps=1).run(damaged, work(tmp_path / "b", teacher))["objective"]


def test_it_is_stored_as_the_source_was_unless_told(teacher: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "bf16", teacher.config, teacher.tensors, dtype="BF16", files=kept_files(teacher.folder))
    source = open_checkpoint(tmp_path / "bf16")
    Distil(steps=1).run(source, work(tmp_path / "a", teacher))
    assert open_checkpoint(tmp_path / "a" / "out").stored_dtypes == {"BF16"}
    Distil(steps=1, store="F32").run(source, work(tmp_path / "b", teacher))
    assert open_checkpoint(tmp_path / "b" / "out").stored_dtypes == {"F32"}


def test_what_cannot_be_is_refused(teacher: Checkpoint, damaged: Checkpoint, tmp_path: Path) -> None:
    for wrong in (
        {"steps": 0},
        {"ratio": 1.5},
        {"hidden": "mse", "cache": "sampled"},
        {"hidden": "mse", "ratio": 0.0},
    ):
        with pytest.raises(InvalidRequestError, match="distil"):
            Distil(**wrong)  # type: ignore[arg-type]
    save_checkpoint(
        tmp_path / "few",
        teacher.config,
        teacher.tensors,
        files=kept_files(teacher.folder),
        quantized=rounded(teacher.config, teacher.tensors, Scheme()),
    )
    with pytest.raises(InvalidRequestError, match="stored in 8 bits"):
        Distil().run(open_checkpoint(tmp_path / "few"), work(tmp_path, teacher))


def test_a_teacher_with_another_vocabulary_is_refused(teacher: Checkpoint, tmp_path: Path) -> None:
    files = kept_files(teacher.folder)
    spec = json.loads(files["tokenizer.json"])
    vocab = spec["model"]["vocab"]
    vocab["!"], vocab["#"] = vocab["#"], vocab["!"]
    files["tokenizer.json"] = json.dumps(spec).encode()
    save_checkpoint(tmp_path / "other", teacher.config, teacher.tensors, files=files)
    with pytest.raises(UnsupportedError, match="different vocabularies"):
        Distil(steps=1).run(open_checkpoint(tmp_path / "other"), work(tmp_path, teacher))


@pytest.mark.parametrize(("ours", "theirs"), [(4, 4), (3, 6), (4, 6), (2, 7), (6, 3), (1, 5)])
def test_layers_are_paired_by_depth(ours: int, theirs: int) -> None:
    pairs = layer_pairs(ours, theirs)
    assert [pair[0] for pair in pairs] == list(range(ours))
    others = [pair[1] for pair in pairs]
    assert others == sorted(others)
    assert others[-1] == theirs - 1
    assert all(0 <= other < theirs for other in others)
