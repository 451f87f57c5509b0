"""The chain: what is done is not done again, what differs is, and what cannot go on says so and stays in order."""

from __future__ import annotations

import dataclasses
import errno
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress.chain.gates import Gates, verdicts
from smelt.compress.chain.run import Watch, run_chain
from smelt.compress.chain.store import artifact_of, settings_of, stage_id
from smelt.compress.distil import Distil
from smelt.compress.stage import Needs, Progress, Work
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError, InvalidRequestError, TrainingError, TrainingStoppedError
from smelt.train.state import locked
from tests.compress.chain.fakes import Scaled, chain, quiet, run, small_source


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_source(tmp_path_factory.mktemp("source") / "small")


def computed(folder: Path) -> int:
    """Tensors that `Scaled` stages computed so far."""
    return sum(path.read_text().count("\n") for path in (folder / "stages").glob("*/computed"))


def test_an_identity_is_everything_that_decides_and_nothing_else() -> None:
    base = stage_id(Scaled(), "input", "teacher", "material")
    assert base == stage_id(Scaled(pause_s=9.0), "input", "teacher", "material"), "how it is computed decides nothing"
    others = {
        stage_id(Scaled(factor=0.25), "input", "teacher", "material"),
        stage_id(Scaled(), "other", "teacher", "material"),
        stage_id(Scaled(), "input", "other", "material"),
        stage_id(Scaled(), "input", "teacher", "other"),
        stage_id(Distil(), "input", "teacher", "material"),
        stage_id(Distil(workers=2, device="cpu", checkpoint_s=1.0, seed=1), "input", "teacher", "material"),
    }
    assert len(others | {base}) == 7


def test_settings_that_are_values_of_another_kind_are_another_identity() -> None:
    """Two targets with equal fields are told apart by what they are."""

    @dataclasses.dataclass(frozen=True)
    class One:
        amount: float = 1.0

    @dataclasses.dataclass(frozen=True)
    class Other:
        amount: float = 1.0

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Aimed(Scaled):
        target: Any = One()

    assert settings_of(Aimed())["target"] == {"is": "One", "amount": 1.0}
    assert stage_id(Aimed(), "i", "t", "m") != stage_id(Aimed(target=Other()), "i", "t", "m")


def test_a_finished_stage_is_never_computed_again(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path, Scaled(), Scaled(factor=2.0))
    count = computed(tmp_path)
    again = run(source, tmp_path, Scaled(), Scaled(factor=2.0))
    assert computed(tmp_path) == count > 0
    assert again.result.hash == first.result.hash
    assert again.source_measured == first.source_measured
    run(source, tmp_path, Scaled(), Scaled(factor=4.0))
    assert computed(tmp_path) == count + count // 2, "only the stage with other settings was computed"
    assert not list((tmp_path / "stages").glob("*/scratch"))


def test_the_same_values_make_the_same_bytes_in_any_folder(source: Path, tmp_path: Path) -> None:
    one, other = (run(source, tmp_path / name, Scaled(), Distil(steps=3)) for name in ("a", "b"))
    assert one.result.hash == other.result.hash
    assert artifact_of(one.result.folder).hash == one.result.hash


def test_what_a_stage_makes_is_what_the_next_one_gets(source: Path, tmp_path: Path) -> None:
    outcome = run(source, tmp_path, Scaled(factor=0.5), Scaled(factor=4.0))
    before, after = open_checkpoint(source).tensors, open_checkpoint(outcome.result.folder).tensors
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(after[name], 2.0 * before[name])
    assert (outcome.result.folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert [step.done.input for step in outcome.steps] == [outcome.source.hash, outcome.steps[0].done.output]


def test_a_finished_stage_that_was_changed_is_named(source: Path, tmp_path: Path) -> None:
    outcome = run(source, tmp_path, Scaled())
    weights = outcome.result.folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="scaled-.*model.safetensors was changed"):
        run(source, tmp_path, Scaled())


def test_a_second_process_is_refused(source: Path, tmp_path: Path) -> None:
    import multiprocessing

    started, end = multiprocessing.Event(), multiprocessing.Event()

    def hold() -> None:
        with locked(tmp_path):
            started.set()
            end.wait(30)

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    try:
        assert started.wait(30)
        with pytest.raises(CheckpointError, match="another process"):
            run(source, tmp_path, Scaled())
    finally:
        end.set()
        holder.join(30)


def test_stopped_it_goes_on_where_it_was(source: Path, tmp_path: Path) -> None:
    stopping = threading.Event()

    def stop(index: int, count: int, name: str, progress: Progress) -> None:
        if index == 1 and progress.done == 3:
            stopping.set()

    made = chain(source, Scaled(), Scaled(factor=2.0))
    with pytest.raises(TrainingStoppedError):
        run_chain(made, source, tmp_path, quiet(stopping=stopping, on_progress=stop))
    count = computed(tmp_path)
    outcome = run(source, tmp_path, Scaled(), Scaled(factor=2.0))
    whole = run(source, tmp_path / "whole", Scaled(), Scaled(factor=2.0))
    assert outcome.result.hash == whole.result.hash
    assert computed(tmp_path) == computed(tmp_path / "whole"), "nothing was computed twice"
    assert count < computed(tmp_path)


def test_time_left_is_told_where_a_stage_does_not_know_it(source: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str, Progress]] = []
    watch = Watch(say=lambda _: None, on_progress=lambda *news: told.append(news))
    run_chain(chain(source, Scaled()), source, tmp_path, watch)
    index, count, name, last = told[-1]
    assert (index, count, name, last.done) == (0, 1, "scaled", last.total)
    assert last.left_s == 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hungry(Scaled):
    memory_bytes: int = 0
    disk_bytes: int = 0
    name: ClassVar[str] = "hungry"

    def needs(self, config: DecoderConfig) -> Needs:
        return Needs(memory_bytes=self.memory_bytes, disk_bytes=self.disk_bytes)


@pytest.mark.parametrize("field", ["memory_bytes", "disk_bytes"])
def test_what_cannot_fit_is_refused_before_it_starts(source: Path, tmp_path: Path, field: str) -> None:
    with pytest.raises(CheckpointError, match=f"hungry needs about .* of {field.partition('_')[0]}"):
        run(source, tmp_path, Scaled(), Hungry(**{field: 1 << 60}))
    assert len(list((tmp_path / "stages").glob("scaled-*/stage.json"))) == 1, "what was finished is kept"
    assert not list((tmp_path / "stages").glob("hungry-*/computed"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failing(Scaled):
    name: ClassVar[str] = "failing"
    errors: ClassVar[list[BaseException]] = []

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        (work.scratch / "half").touch()
        if self.errors:
            raise self.errors.pop()
        assert (work.scratch / "half").is_file()
        return super().run(source, work)


@pytest.mark.parametrize(
    ("error", "sought"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), (CheckpointError, "failing: the disk is full")),
        (MemoryError(), (TrainingError, "failing: out of memory")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), (TrainingError, "out of memory")),
        (RuntimeError("shapes differ"), (RuntimeError, "shapes differ")),
        (OSError(errno.EACCES, "Permission denied"), (OSError, "Permission denied")),
    ],
)
def test_a_full_disk_or_memory_is_a_sentence_and_the_next_call_goes_on(
    source: Path, tmp_path: Path, error: BaseException, sought: tuple[type[Exception], str]
) -> None:
    Failing.errors[:] = [error]
    with pytest.raises(sought[0], match=sought[1]):
        run(source, tmp_path, Failing())
    assert run(source, tmp_path, Failing()).result.hash == run(source, tmp_path / "b", Failing()).result.hash


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torn(Scaled):
    """Killed, as it were, between its result and the note that it is done."""

    name: ClassVar[str] = "torn"
    torn: ClassVar[list[bool]] = []

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        found = super().run(source, work)
        if self.torn.pop():
            raise KeyboardInterrupt
        return found


def test_a_result_that_was_not_noted_is_made_again_from_the_scratch(source: Path, tmp_path: Path) -> None:
    Torn.torn[:] = [False, True]
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path, Torn())
    count = computed(tmp_path)
    run(source, tmp_path, Torn())
    assert computed(tmp_path) == count


def measured(**changes: Any) -> dict[str, Any]:
    plain = {"bits_per_byte": {"value": 2.0}, "agreement": {"value": 0.9}, "bytes": 100, "decode_tok_s": {"value": 50}}
    return plain | changes


def test_gates_hold_or_fail_each_for_itself() -> None:
    gates = Gates(max_bpb_increase=0.02, min_agreement=0.9, max_bytes=100, min_tok_s=50)
    assert all(verdict.passed for verdict in verdicts(gates, measured(), measured()))
    worse = measured(
        bits_per_byte={"value": 2.041}, agreement={"value": 0.899}, bytes=101, decode_tok_s={"value": 49.9}
    )
    found = verdicts(gates, measured(), worse)
    assert [verdict.gate for verdict in found if not verdict.passed] == [
        "max_bpb_increase", "min_agreement", "max_bytes", "min_tok_s",
    ]  # fmt: skip
    assert found[0].found == pytest.approx(0.0205)
    assert verdicts(Gates(), measured(), worse) == []
    unmeasured = verdicts(Gates(min_tok_s=1.0), measured(), measured(decode_tok_s=None))
    assert not unmeasured[0].passed, "what could not be measured does not pass"


def test_gates_refuse_what_cannot_hold() -> None:
    for wrong in ({"min_agreement": 1.5}, {"max_bytes": 0}, {"min_tok_s": -1.0}):
        with pytest.raises(InvalidRequestError):
            Gates(**wrong)  # type: ignore[arg-type]


def test_a_failing_gate_is_an_outcome(source: Path, tmp_path: Path) -> None:
    outcome = run(source, tmp_path, Scaled(factor=0.0), gates=Gates(min_agreement=0.999, max_bytes=1 << 30))
    assert not outcome.passed
    assert [verdict.passed for verdict in outcome.verdicts] == [False, True]
