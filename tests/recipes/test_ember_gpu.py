"""The accelerator's tier on a processor, in seconds: an invented corpus in pieces, two commands, a student."""

from __future__ import annotations

import dataclasses
import json
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.ember import EmberConfig
from recipes.ember_data import Material
from recipes.ember_gpu import SMOKE, Fitting, GpuConfig, make
from recipes.ember_gpu_clock import Clock, Times
from recipes.ember_gpu_data import Rows, even
from recipes.ember_gpu_folder import take_home
from recipes.ember_material import as_json, files_of, from_json, restored
from recipes.ember_pack import main, pack, pack_ember, read_manifest, unpack
from recipes.house import TINY
from recipes.mixtures import SKILLS
from smelt.core.errors import DataError, InvalidRequestError
from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.data.batches import Batch
from smelt.data.corpus.documents import Document
from smelt.data.corpus.shards import ShardWriter, read_documents
from smelt.generate.llm import LLM
from smelt.model.attention import Flex
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer
from smelt.train.config import ScheduleConfig, TrainConfig
from smelt.train.distill.objective import Distillation
from smelt.train.lineage import broken_at
from smelt.train.recipe import Workshop
from smelt.train.teachers.online import DecoderTeacher

LIMIT = 24_000
FOLDER = Path(__file__).resolve().parents[2] / "src/smelt/shipped/spark"
WORDS = "the ember of a small fire glows under ash while rain falls on tin roofs and the dog sleeps near it".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(3)
    writer = ShardWriter(folder, "enwiki", "train", shard_bytes=60_000)
    for i in range(400):
        text = " ".join(rng.choice(WORDS, 50)) + f" {rng.integers(1 << 60)}."
        writer.add(Document(text=text, source="enwiki", language="en", key=f"doc/{i}"))
    writer.close()
    row = {"name": "enwiki", "origin": "invented", "licence": "CC0", "language": "en"}
    manifest = {"sources": [row], "shards": [dataclasses.asdict(shard) for shard in writer.shards]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def packed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    config = EmberConfig(vocab_size=1024, tokenizer_examples=300, tokenizer_documents=50)
    pack_ember(folder, data=None, corpus=corpus, config=config, limit_bytes=LIMIT)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pieces_keep_the_limit_and_come_back_whole(packed: Path, corpus: Path, tmp_path: Path) -> None:
    pieces = sorted(packed.glob("piece-*"))
    assert len(pieces) > 1
    for piece in pieces:
        assert 0 < sum(path.stat().st_size for path in piece.iterdir()) <= LIMIT
    manifest = read_manifest(packed)
    assert {"name": "enwiki", "origin": "invented", "licence": "CC0"} in manifest["licences"]
    unpack(packed, tmp_path / "there")
    again = restored(tmp_path / "there")
    assert again.corpus is not None
    assert list(read_documents(again.corpus)) == list(read_documents(corpus))
    assert (tmp_path / "there/tokenizer/tokenizer.json").read_bytes() == (
        packed / "tokenizer/tokenizer.json"
    ).read_bytes()


def test_a_packing_goes_on_and_gives_the_same(packed: Path, corpus: Path, tmp_path: Path) -> None:
    material = Material.load(None, corpus, 30)
    files = list(files_of(material, packed / "tokenizer"))

    def cut_short() -> object:
        yield from files[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path, cut_short(), {}, limit_bytes=LIMIT)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no manifest"):
        read_manifest(tmp_path)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.xz")}
    assert kept
    parts = pack(tmp_path, files, {}, limit_bytes=LIMIT)
    assert parts == pack(tmp_path, files, {}, limit_bytes=LIMIT)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.xz")}.items()
    ours = {name: content for name, content in contents(tmp_path).items() if name.endswith(".xz")}
    assert ours == {name: content for name, content in contents(packed).items() if name.endswith(".xz")}


def test_damaged_and_missing_pieces_are_refused(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pack"
    for name, content in contents(packed).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    victim = next(copy.glob("piece-01/*.xz"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-20] + bytes(20))
    with pytest.raises(DataError, match="send it again"):
        unpack(copy, tmp_path / "a")
    victim.unlink()
    with pytest.raises(DataError, match="piece-01 have come"):
        unpack(copy, tmp_path / "b")
    with pytest.raises(SystemExit, match="piece-01"):
        main(["unpack", str(copy), str(tmp_path / "c")])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_examples_travel_as_they_are(index: int) -> None:
    example = SKILLS.example(9, index)
    assert from_json(json.loads(json.dumps(as_json(example)))) == example


def test_batches_have_one_shape() -> None:
    batch = Batch(
        inputs=np.ones((3, 4), np.int64), targets=np.ones((3, 4), np.int64), segment_ids=np.zeros((3, 4), np.int32)
    )
    more = even(batch, 5, pad_id=7)
    assert more.inputs.shape == more.targets.shape == (5, 4)
    assert more.num_learned == more.num_tokens == 12
    assert (more.inputs[3:] == 7).all()
    assert even(batch, 2, 7).inputs.shape == (2, 4)
    assert even(batch, 3, 7) is batch


def test_the_student_fits_16_mb() -> None:
    shape = GpuConfig().student.shape.decoder(Tokenizer.load(FOLDER))
    parameters = dataclasses.replace(shape, vocab_size=EmberConfig().vocab_size).num_parameters
    assert 15_000_000 < 2 * parameters + 300_000 < 16_000_000  # bf16, with the tokenizer and the card


def test_two_models_are_compiled_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, with its attention and its settings, but no kernels made: four graphs, whatever comes."""
    monkeypatch.setattr(
        "smelt.model.decoder.attends",
        lambda windows, past, segment_ids, like: {w: Flex.of(segment_ids, w, compiled=False) for w in set(windows)},
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # what earlier tests compiled is counted too
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", False)
    tokenizer, rng = Tokenizer.load(FOLDER), np.random.default_rng(4)
    models = []
    for width in (64, 32):
        shape = dataclasses.replace(TINY, hidden_size=width, num_layers=4, global_layers=(1, 3), window=32)
        models.append(Decoder(shape.decoder(tokenizer)))
        models[-1].init_weights(width)
        for layer in models[-1].model.layers:
            layer.compile(backend="eager")
    objective = Distillation(DecoderTeacher(models[0], tokenizer.vocab_size), ratio=0.9)
    with torch.no_grad():  # the kernel has no backward pass on a processor
        for _ in range(3):
            ids = rng.integers(10, 1000, (2, 128))
            segments = [np.repeat([0, 1, 2], [cut, 60, 68 - cut]) for cut in rng.integers(1, 60, 2)]
            objective(models[1], Batch(ids, ids, np.stack(segments).astype(np.int32)), torch.device("cpu"))
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
            assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # what earlier tests compiled is counted too


def test_the_plan_shares_out_what_is_left_and_keeps_it(tmp_path: Path) -> None:
    times = Times(minutes=10, commands=3, start_s=60, reserve_s=30, teacher_share=0.5, slack=0, least_s=20)
    first = Clock(times, tmp_path / "plan.json", began=time.monotonic() - 100)
    assert first.here_s == pytest.approx(470, abs=1)
    assert first.left_s == pytest.approx(470 + 2 * 510, abs=1)
    teacher_s = first.deadline("teacher", 0.5)
    assert teacher_s == pytest.approx((470 + 2 * 510 - 60) / 2, abs=1)
    second = Clock(times, tmp_path / "plan.json", began=time.monotonic() - 300)  # slow: the student pays, no one else
    assert second.deadline("teacher", 0.5) == teacher_s
    assert second.deadline("student", 1.0) == pytest.approx(270 + 510 - 60, abs=1)
    Clock(times, tmp_path / "plan.json")
    late = Clock(times, tmp_path / "plan.json", began=time.monotonic() - 560)
    assert not late.may_begin
    assert late.deadline("more", 1.0) == 20


def test_the_clock_rings_once_and_only_for_itself(tmp_path: Path) -> None:
    clock = Clock(Times(minutes=0.05 / 60, reserve_s=0), tmp_path / "plan.json")
    stopping = threading.Event()
    with clock.stops(stopping):
        assert stopping.wait(5)
    assert clock.ran_out
    other = Clock(Times(minutes=0.05 / 60, reserve_s=0), tmp_path / "plan.json")
    with other.stops(stopping):  # set before by someone else
        time.sleep(0.1)
    assert not other.ran_out


def test_steps_settled_before_are_cut_to_what_still_fits(tmp_path: Path) -> None:
    def run(clock: Clock | None) -> Fitting:
        house = dataclasses.replace(TINY, num_layers=1, global_layers=(0,))
        decoder = Decoder(house.decoder(Tokenizer.load(FOLDER)))
        schedule = ScheduleConfig(total_steps=1000)
        return Fitting(
            model=decoder, stages=[], config=TrainConfig(schedule=schedule), folder=tmp_path / "run", clock=clock
        )

    first = run(None)
    first.position.step, first.position.elapsed_s = 700, 1400.0
    first.plan.settled = True
    first.save()
    times = Times(minutes=10, commands=1, start_s=0, reserve_s=0, slack=0.5)
    for clock, total in ((Clock(times, tmp_path / "plan.json"), 850), (None, 1000)):
        again = run(clock)
        again.resume()
        assert again.plan.total_steps == pytest.approx(total, abs=1)
        assert again.plan.decay_start == first.plan.decay_start


@pytest.fixture(scope="module")
def commands(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """Commands until all is done; what `plan.json` and the runs said after each."""
    out, told = tmp_path_factory.mktemp("gpu"), []
    while len(told) < 6:
        began = time.monotonic()
        said: list[str] = []
        shop = Workshop(out=out, data=packed, on_report=lambda report: None, say=said.append)
        made = make(SMOKE, shop)
        plan = json.loads((out / "plan.json").read_text())
        told.append({"made": made, "said": said, "s": time.monotonic() - began, "plan": plan})
        if said[-1] == "done":
            break
    return told


def test_every_command_ends_in_time_and_the_next_goes_on(commands: list[dict[str, object]]) -> None:
    assert 2 <= len(commands) <= 5  # two, but for a busy machine
    assert "stopped in time" in commands[0]["said"][-1]  # type: ignore[index]
    assert commands[-1]["said"][-1] == "done"  # type: ignore[index]
    for one in commands:
        assert one["s"] < SMOKE.times.minutes * 60 + 8  # type: ignore[operator]
    out = commands[-1]["made"].parent  # type: ignore[attr-defined]
    for run in ("teacher-run", "student-run"):
        rows = [json.loads(line) for line in (out / run / "metrics.jsonl").read_text().splitlines()]
        steps = [row["step"] for row in rows]
        assert steps == sorted(set(steps))
        assert rows[-1]["stage"] == "last"
        assert rows[-1]["step"] == rows[-1]["total_steps"]  # the rate came down to zero, however fast the machine is
        assert rows[-1]["scale"] < 0.2
    deadlines = {one["plan"]["teacher_s"] for one in commands}  # type: ignore[index]
    assert len(deadlines) == 1


def test_the_student_loads_answers_and_names_its_tier(commands: list[dict[str, object]]) -> None:
    folder = commands[-1]["made"]
    assert isinstance(folder, Path)
    chain = json.loads((folder / "lineage.json").read_text())["chain"]
    assert broken_at(chain) is None
    assert [entry["step"] for entry in chain] == ["data", "tokenizer", "teacher", "student", "weights"]
    student = chain[3]
    assert student["tier"] == "gpu"
    assert student["finished"] is True
    assert student["objective"].startswith("distil(")
    card = json.loads((folder / "card.json").read_text())
    assert card["scores"] == "not measured yet"
    assert {row["name"] for row in card["data"]} >= {"enwiki"}
    llm = LLM.load(folder)
    try:
        asked = (Message.of("user", "Hello"),)
        answer = llm.chat(ChatRequest(messages=asked, params=SamplingParams(temperature=0.0, max_tokens=8)))
    finally:
        llm.close()
    assert 1 <= answer.usage.completion_tokens <= 8


def test_what_comes_home_is_one_file_without_the_teacher(commands: list[dict[str, object]], tmp_path: Path) -> None:
    out = commands[-1]["made"].parent  # type: ignore[attr-defined]
    with tarfile.open(out / "home.tar.xz") as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    assert {"ember/model.safetensors", "ember/card.json", "student-run/metrics.jsonl", "plan.json"} <= set(names)
    assert not any(name.startswith("teacher/model") or "state-" in name for name in names)
    assert (tmp_path / "ember/model.safetensors").read_bytes() == (out / "ember/model.safetensors").read_bytes()
    with pytest.raises(DataError, match="take home"):
        take_home(out, [out / "ember"], most=100)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_accelerator_compiles_both_models_once_and_ends_in_time(packed: Path, tmp_path: Path) -> None:
    times = Times(minutes=1.6, commands=1, start_s=25, reserve_s=5, least_s=5)
    config = dataclasses.replace(GpuConfig(), times=times, rows=Rows(rows=4, workers=2))
    began = time.monotonic()
    folder = make(config, Workshop(out=tmp_path, data=packed))
    assert time.monotonic() - began < 100
    chain = json.loads((folder / "lineage.json").read_text())["chain"]
    assert chain[3]["hardware"]["accelerator"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] < 40


def test_without_a_pack_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="ember_pack"):
        make(SMOKE, Workshop(out=tmp_path))
    with pytest.raises(DataError, match="no manifest"):
        make(SMOKE, Workshop(out=tmp_path, data=tmp_path))
    assert not (tmp_path / "plan.json").exists()  # no command of the plan is spent
