"""From what a user asks for to stages: words, settings, targets; material that never shares a row."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress.chain.gates import Gates
from smelt.compress.chain.material import MaterialSettings, make_material, text_bytes
from smelt.compress.distil import Distil
from smelt.compress.prune.shapes import Bytes, Share, Speed
from smelt.compress.prune.stage import Prune
from smelt.compress.shrink import ShrinkSettings, planned
from smelt.compress.targets import ONE_SHOT, Sizes, aimed, read_target
from smelt.compress.words import DEFAULT, WORDS, changed, scratch_control, stage_of
from smelt.core.cost import Rates, training_flops, weight_bytes
from smelt.core.errors import DataError, InvalidRequestError
from smelt.tokenizer import Tokenizer
from tests.compress.chain.fakes import small_source
from tests.tiny import tiny_config

CONFIG = tiny_config("llama", hidden_size=64, intermediate_size=128)
SIZES = Sizes(config=CONFIG, floats="fp32", other_bytes=10_000)
DEFAULT_STAGES = tuple(stage_of(word, CONFIG) for word in DEFAULT)


def test_every_word_is_a_stage_that_says_what_it_is() -> None:
    for word in WORDS:
        stage = stage_of(word, CONFIG)
        assert dataclasses.is_dataclass(stage)
        assert stage.name == word or word in ("w8", "w4", "w8a8")
    with pytest.raises(InvalidRequestError, match="no stage 'prun'; there are prune, distil"):
        stage_of("prun", CONFIG)


def test_four_bits_take_groups_that_divide_every_row() -> None:
    for hidden, sought in ((128, 64), (96, 32), (48, None)):
        config = tiny_config("llama", hidden_size=hidden, intermediate_size=2 * hidden, num_heads=hidden // 16)
        stage: Any = stage_of("w4", config)
        assert stage.scheme.weights.group_size == sought


def test_settings_change_the_stage_they_name() -> None:
    stages = [stage_of(word, CONFIG) for word in ("prune", "distil", "prune", "distil", "quantize")]
    found: Any = changed(
        stages,
        ["distil.steps=7", "distil.2.loss=jsd", "prune.1.target.of_parameters=0.9", "quantize.scheme.weights.bits=6"],
    )
    assert [found[1].steps, found[3].steps] == [7, 7]
    assert [found[1].loss, found[3].loss] == ["forward", "jsd"]
    assert [found[0].target.of_parameters, found[2].target.of_parameters] == [0.9, 0.7]
    assert found[4].scheme.weights.bits == 6
    for wrong, why in (
        ("steps=7", "stage.key=value"),
        ("share.rank=4", "a stage among prune, distil, quantize"),
        ("distil.3.steps=7", "there are 2 stages named distil"),
        ("distil.step=7", "did you mean steps"),
        ("distil.steps=many", "sought int"),
        ("distil.steps=0", "at least 1"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            changed(stages, [wrong])


def test_a_control_is_the_last_repair_on_fresh_weights() -> None:
    control: Any = scratch_control([Distil(steps=3), Distil(steps=5, muon_lr=1e-3), stage_of("w8", CONFIG)])
    assert (control.fresh, control.steps, control.muon_lr) == (True, 5, 1e-2)
    assert scratch_control([stage_of("w8", CONFIG)]) is None


@pytest.mark.parametrize(
    ("word", "kind", "amount"),
    [
        ("30%", "bytes", 300.0),
        ("8MB", "bytes", 8e6),
        ("1.5 GB", "bytes", 1.5e9),
        ("2M-params", "parameters", 2e6),
        ("900-params", "parameters", 900.0),
        ("500tok/s", "speed", 500.0),
    ],
)
def test_targets_by_their_words(word: str, kind: str, amount: float) -> None:
    found = read_target(word, 1000)
    assert (found.kind, found.amount) == (kind, pytest.approx(amount))


@pytest.mark.parametrize("word", ["", "small", "8", "-3MB", "0%", "100%", "150%", "8mb", "3 tok"])
def test_what_is_no_target_is_refused(word: str) -> None:
    with pytest.raises(InvalidRequestError, match="30%"):
        read_target(word, 1000)


def test_a_target_is_a_gate_where_none_of_its_kind_was_asked_for() -> None:
    assert read_target("50%", 1000).gates(Gates()).max_bytes == 500
    assert read_target("50%", 1000).gates(Gates(max_bytes=7)).max_bytes == 7
    assert read_target("500tok/s", 1000).gates(Gates()).min_tok_s == 500
    assert read_target("9-params", 1000).gates(Gates()) == Gates()


def test_what_quantizing_alone_reaches_is_not_pruned() -> None:
    target = read_target("60%", weight_bytes(CONFIG, "fp32") + 10_000)
    stages, said = aimed(DEFAULT_STAGES, target, SIZES, None, chosen=False)
    assert [stage.name for stage in stages] == ["quantize"]
    assert "nothing is pruned" in said[0]
    kept, _ = aimed(DEFAULT_STAGES, target, SIZES, None, chosen=True)
    assert kept == DEFAULT_STAGES, "stages the user named stay"


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.25, 0.1])
def test_a_small_target_takes_several_shots_of_at_most_a_third(share: float) -> None:
    target = read_target(f"{CONFIG.num_parameters * share / 1e3}k-params", 0)
    stages, _ = aimed(DEFAULT_STAGES, target, SIZES, None, chosen=False)
    prunes = [stage for stage in stages if isinstance(stage, Prune)]
    assert [stage.name for stage in stages] == ["prune", "distil"] * len(prunes) + ["quantize"]
    left = 1.0
    for stage in prunes[:-1]:
        assert isinstance(stage.target, Share)
        assert stage.target.of_parameters >= ONE_SHOT - 1e-6
        left *= stage.target.of_parameters
    assert share / left >= ONE_SHOT - 1e-6
    assert (len(prunes) - 1) * math.log(ONE_SHOT) > math.log(share), "no shot more than it takes"


def test_the_last_shot_aims_at_what_the_folder_may_weigh() -> None:
    weights = weight_bytes(CONFIG, stage_of("w8", CONFIG).scheme)  # type: ignore[attr-defined]
    target = read_target(f"{(0.75 * weights + 60_000) / 1e3}kB", 0)
    stages, _ = aimed(DEFAULT_STAGES, target, SIZES, None, chosen=False)
    (prune,) = [stage for stage in stages if isinstance(stage, Prune)]
    assert isinstance(prune.target, Bytes)
    assert prune.target.at_most < target.amount - SIZES.other_bytes
    assert prune.target.stored == stage_of("w8", CONFIG).scheme  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequestError, match="alone take"):
        aimed(DEFAULT_STAGES, read_target("5kB", 0), SIZES, None, chosen=False)


def test_stages_that_cannot_reach_the_target_are_refused() -> None:
    target = read_target(f"{CONFIG.num_parameters * 0.3 / 1e3}k-params", 0)
    with pytest.raises(InvalidRequestError, match="sought 3 times prune,distil"):
        aimed(DEFAULT_STAGES, target, SIZES, None, chosen=True)
    with pytest.raises(InvalidRequestError, match="sought prune among them"):
        aimed([stage_of("w8", CONFIG)], target, SIZES, None, chosen=True)
    rates = Rates(read_gb_s=10.0, multiply_gops=10.0, attention_gflops=1.0, step_s=1e-6)
    fast = read_target("1000000tok/s", 0)
    with pytest.raises(InvalidRequestError, match="rates"):
        aimed(DEFAULT_STAGES, fast, SIZES, None, chosen=True)
    with pytest.raises(InvalidRequestError, match="times prune,distil"):
        aimed(DEFAULT_STAGES, fast, SIZES, rates, chosen=True)
    slow, _ = aimed(DEFAULT_STAGES, read_target("20000tok/s", 0), SIZES, rates, chosen=False)
    prunes = [stage for stage in slow if isinstance(stage, Prune)]
    assert not prunes or isinstance(prunes[-1].target, Speed)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    return open_checkpoint(small_source(tmp_path_factory.mktemp("shrink") / "small"))


def test_a_plan_says_what_it_takes_before_anything_is_done(source: Checkpoint, tmp_path: Path) -> None:
    settings = ShrinkSettings(model=str(source.folder), to="50%", changes=("quantize.method=awq",), control=True)
    plan = planned(settings)
    told = plan.document(tmp_path / "not" / "there")
    json.dumps(told)
    assert told["source"]["parameters"] == source.config.num_parameters
    assert told["gates"] == {"max_bytes": told["source"]["bytes"] // 2}
    assert [stage["settings"].get("method") for stage in told["stages"]][-1] == "awq"
    for stage in told["stages"]:
        assert 4 * source.config.num_parameters < stage["memory_bytes"] < told["free_memory_bytes"]
        assert stage["disk_bytes"] > 0
    assert not (tmp_path / "not").exists()


def test_a_speed_asks_the_machine_once(source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are part of what a pruning aims at: measured anew, they would make a chain that goes on another one."""
    rates = iter([Rates(read_gb_s=9.0, multiply_gops=9.0, attention_gflops=1.0, step_s=1e-6 * i) for i in (1, 2, 3)])
    monkeypatch.setattr("smelt.compress.shrink.measure_rates", lambda config: next(rates))
    settings = ShrinkSettings(model=str(source.folder), to="1tok/s", stages=("prune", "w8"))
    first, again = planned(settings, tmp_path / "out"), planned(settings, tmp_path / "out")
    assert first.stages == again.stages
    assert first.gates.min_tok_s == 1.0
    assert json.loads((tmp_path / "out" / "rates.json").read_text())["step_s"] == 1e-6
    planned(settings)
    assert next(rates).step_s == 3e-6, "a dry run asks too, and keeps nothing"


def test_training_is_counted_with_its_teacher(source: Checkpoint) -> None:
    settings = ShrinkSettings(model=str(source.folder), changes=("distil.steps=10",))
    plan = planned(settings)
    per_token = 4 / 3 * training_flops(source.config, source.config.context_len)
    prune, distil, quantize = (plan.training_flops(stage) for stage in plan.stages)
    assert (prune, quantize) == (0.0, 0.0)
    tokens = 10 * settings.material.rows * min(settings.material.row_len, source.config.context_len)
    assert distil == pytest.approx(tokens * per_token, rel=0.2)


def texts(path: Path, lines: int = 300) -> Path:
    path.write_text("".join(f"Line {i}: the quick brown fox jumps {i * i} times today.\n\n" for i in range(lines)))
    return path


SMALL = MaterialSettings(row_len=32, rows=2, train_tokens=2000, held_out_rows=6, calibration=8)


def test_material_of_a_file_shares_no_row(source: Checkpoint, tmp_path: Path) -> None:
    path = str(texts(tmp_path / "texts.txt"))
    settings = dataclasses.replace(SMALL, train_on=path, calibrate=path)
    made, told = make_material(source, settings, tmp_path / "material")
    again, _ = make_material(source, settings, tmp_path / "again")
    assert made.digest == again.digest
    other, _ = make_material(source, dataclasses.replace(settings, seed=1), tmp_path / "again")
    assert other.digest != made.digest

    def row_set(batches: Any) -> set[bytes]:
        return {row.tobytes() for batch in batches for row in batch.inputs}

    stream = made.stream(0)
    learned, held, seen = (row_set(each) for each in (stream.chunk(0), made.held_out, made.calibration.batches))
    assert len(learned) >= 10
    assert len(held) >= 1
    assert len(seen) >= 1
    assert not learned & held
    assert not learned & seen
    assert not held & seen
    assert row_set(stream.chunk(1)) == learned
    assert [b.inputs.tobytes() for b in stream.chunk(1)] != [b.inputs.tobytes() for b in stream.chunk(0)]
    assert [b.inputs.tobytes() for b in stream.chunk(1)] == [b.inputs.tobytes() for b in made.stream(0).chunk(1)]
    tokenizer = Tokenizer.load(source.folder)
    ids = np.concatenate([batch.targets[batch.targets >= 0] for batch in made.held_out])
    assert made.held_out_bytes == len(b"".join(tokenizer.token_bytes(int(i)) for i in ids)) > 0
    assert text_bytes([], tokenizer) == 0
    (row,) = told
    assert row["name"] == "texts.txt"
    assert row["bytes"] == (tmp_path / "texts.txt").stat().st_size


def test_material_the_model_writes_is_written_once(source: Checkpoint, tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, train_tokens=320, calibration=4, held_out_rows=2)
    made, told = make_material(source, settings, tmp_path / "material")
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "material").iterdir()}
    assert written
    again, _ = make_material(source, settings, tmp_path / "material")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "material").iterdir()} == written
    assert again.digest == made.digest
    assert told[0]["name"] == "text of the model itself"


def test_too_little_text_is_refused(source: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("One short line.")
    settings = dataclasses.replace(SMALL, train_on=str(path), calibrate=str(path))
    with pytest.raises(DataError, match="at least 3 rows"):
        make_material(source, settings, tmp_path / "material")
