"""The stage: folders that plain transformers loads, the same bits after a kill, facts that are true."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress.calibration import Calibration
from smelt.compress.prune.importance import Shape
from smelt.compress.prune.shapes import Limits, Share
from smelt.compress.prune.stage import Prune
from smelt.compress.quality import bits_per_byte
from smelt.compress.stage import Material, Progress, Work
from smelt.core.decoder import Family
from smelt.core.errors import InvalidRequestError, TrainingStoppedError
from smelt.core.quantization import Scheme
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from tests.tiny import make_tiny_folder, tiny_config

CPU = torch.device("cpu")
FINE = Limits(multiple=4)
UNEVEN = Shape(num_layers=4, hidden_size=62, intermediate_size=96, num_kv_heads=2, heads_per_group=2)


def folder(path: Path, family: Family = "gemma3_text", **changes: Any) -> Checkpoint:
    fields: dict[str, Any] = {"num_layers": 4, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4}
    if family == "gemma3_text":
        fields["embedding_scale"] = 8.0
    return open_checkpoint(make_tiny_folder(path, family=family, **(fields | changes)))


def batch(seed: int, vocab_size: int) -> Batch:
    ids = np.random.default_rng(seed).integers(0, vocab_size, (2, 21))
    return Batch(ids[:, :-1], ids[:, 1:])


class Chunks:
    """A stream of one batch a chunk."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def chunk(self, number: int) -> list[Batch]:
        return [batch(100 + number, self.vocab_size)]


def work(path: Path, source: Checkpoint, **changes: Any) -> Work:
    vocab_size = source.config.vocab_size
    material = Material(
        calibration=Calibration(source="noise", digest="0" * 64, batches=tuple(batch(i, vocab_size) for i in range(3))),
        held_out=[batch(9, vocab_size)],
        held_out_bytes=160,
        stream=lambda seed: Chunks(vocab_size),
        digest="1" * 64,
    )
    (path / "scratch").mkdir(parents=True, exist_ok=True)
    fields = {"out": path / "out", "scratch": path / "scratch", "material": material, "teacher": source}
    return Work(**(fields | {"say": lambda _: None} | changes))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
@torch.no_grad()
def test_plain_transformers_loads_the_result(tmp_path: Path, family: Family) -> None:
    """Every axis is cut, config.json says all there is to know, and their logits are ours."""
    from transformers import AutoModelForCausalLM

    special: dict[Family, dict[str, Any]] = {
        "qwen3": {"o_bias": True, "qkv_bias": True},
        "gemma3_text": {"embedding_scale": 48**0.5, "attention_scale": 0.2},
    }
    wide = {"num_heads": 6, "num_kv_heads": 3, "hidden_size": 48}
    source = folder(tmp_path / "source", family, **wide, **special.get(family, {}))
    target = Shape(num_layers=3, hidden_size=32, intermediate_size=64, num_kv_heads=2, heads_per_group=1)
    Prune(target=target).run(source, work(tmp_path, source))
    made = open_checkpoint(tmp_path / "out")
    assert Shape.of(made.config) == target
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(2, made.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(7))
    sought = theirs.eval()(ids).logits
    assert sought.std() > 0.2
    assert (Decoder.from_tensors(made.config, made.tensors).eval()(ids) - sought).abs().max() < 1e-4
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "source" / "tokenizer.json").read_bytes()


def test_facts_are_what_the_folders_say(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", dtype="BF16")
    seen: list[Progress] = []
    job = work(tmp_path, source, on_progress=seen.append)
    facts = Prune(target=Share(of_parameters=0.75), candidates=3).run(source, job)
    assert json.loads(json.dumps(facts)) == facts
    made = open_checkpoint(tmp_path / "out")
    assert facts["parameters"] == {"before": source.config.num_parameters, "after": made.config.num_parameters}
    assert facts["weight_bytes"]["after"] == 2 * made.config.num_parameters
    assert made.config.num_parameters <= 0.75 * source.config.num_parameters
    assert Shape(**facts["shape"]["after"]) == Shape.of(made.config)
    assert facts["calibration"] == {"documents": 6, "tokens": 120}
    for name, opened in (("before", source), ("pruned", made)):
        model = Decoder.from_tensors(opened.config, opened.tensors).eval()
        measured = bits_per_byte(model, job.material, CPU)
        # what is saved in BF16 differs from what was measured by the rounding of repaired gains
        assert facts["held_out_bpb"][name] == pytest.approx(measured, rel=2e-3)
    best = min(facts["candidates"], key=lambda row: row["pruned_bpb"])
    assert best["shape"] == facts["shape"]["after"] and best["pruned_bpb"] == facts["held_out_bpb"]["pruned"]
    assert {progress.unit for progress in seen} == {"batches", "candidates"}


def stopped(stage: Prune, source: Checkpoint, path: Path, *, at_report: int) -> bool:
    """Run until that report of progress asks it to stop; False where it came to its end."""
    stopping, reports = threading.Event(), iter(range(1, 1000))

    def stop(progress: Progress) -> None:
        if next(reports) == at_report:
            stopping.set()

    try:
        stage.run(source, work(path, source, on_progress=stop, stopping=stopping))
    except TrainingStoppedError:
        return True
    return False


def test_a_stage_that_was_stopped_anywhere_ends_at_the_same_bits(tmp_path: Path) -> None:
    """Stopped at its first report of progress, called again, stopped at its second, and so on to the end."""
    source = folder(tmp_path / "source")
    stage = Prune(target=Share(of_parameters=0.75), candidates=3, limits=FINE, finalists=2, trial_steps=2)
    stage.run(source, work(tmp_path / "straight", source))
    stops = 0
    while stopped(stage, source, tmp_path / "broken", at_report=stops + 1):
        stops += 1
        assert not (tmp_path / "broken" / "out").exists() and stops < 30
    assert stops >= 3
    for name in ("model.safetensors", "config.json"):
        made, sought = (tmp_path / run / "out" / name for run in ("broken", "straight"))
        assert made.read_bytes() == sought.read_bytes()


def test_short_distillations_choose_among_the_best(tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    facts = Prune(target=Share(of_parameters=0.75), candidates=3, limits=FINE, finalists=2, trial_steps=3).run(
        source, work(tmp_path, source)
    )
    tried = [row for row in facts["candidates"] if "distilled_bpb" in row]
    assert len(tried) == 2
    assert max(row["pruned_bpb"] for row in tried) <= min(
        row["pruned_bpb"] for row in facts["candidates"] if "distilled_bpb" not in row
    )
    assert min(tried, key=lambda row: row["distilled_bpb"])["shape"] == facts["shape"]["after"]


def test_kept_scores_spare_a_second_target_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "source")
    target = replace(Shape.of(source.config), intermediate_size=64)
    Prune(target=target, scores=tmp_path / "kept").run(source, work(tmp_path / "first", source))
    monkeypatch.setattr("smelt.compress.prune.stage.scores_of", lambda *_: pytest.fail("the model was run again"))
    Prune(target=replace(target, intermediate_size=48), scores=tmp_path / "kept").run(
        source, work(tmp_path / "second", source)
    )
    assert open_checkpoint(tmp_path / "second" / "out").config.intermediate_size == 48


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (Prune(target=Share(of_parameters=0.3)), "several shots"),
        (Prune(target=Share(of_parameters=0.7), candidates=0), "candidates is 0"),
        (Prune(target=UNEVEN), "multiple of 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, stage: Prune, says: str) -> None:
    source = folder(tmp_path / "source")
    with pytest.raises(InvalidRequestError, match=says):
        stage.run(source, work(tmp_path, source))
    assert not (tmp_path / "out").exists()


def test_a_quantized_source_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    with pytest.raises(InvalidRequestError, match="prune before quantizing"):
        Prune(target=Share(of_parameters=0.7)).run(replace(source, scheme=Scheme()), work(tmp_path, source))


def test_trials_need_room_for_a_teacher_and_their_state() -> None:
    config = tiny_config("llama")
    plain = Prune(target=Share(of_parameters=0.7)).needs(config)
    tried = Prune(target=Share(of_parameters=0.7), trial_steps=5).needs(config)
    assert 4 * config.num_parameters < plain.memory_bytes < tried.memory_bytes
    assert plain.disk_bytes == 4 * config.num_parameters < tried.disk_bytes
