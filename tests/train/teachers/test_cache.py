"""The teacher cache: unbiased where it draws, equal where it keeps all, whole after a kill, refused where it is not."""

from __future__ import annotations

import json
import os
import signal as signals
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.data.batches import Batch
from smelt.train.distill.divergence import FORWARD_KL, REVERSE_KL, Divergence
from smelt.train.distill.objective import Distillation
from smelt.train.teachers.cache import CachedTeacher, CacheReport, build_cache
from smelt.train.teachers.cache_format import CacheSettings, Kept, batch_digest, pack, record_dtype, unpack
from smelt.train.teachers.cache_scorer import ModelScorer, draw, top
from tests.train.distill.distilling import CPU, VOCAB, batch, decoder, gradients, teacher


@dataclass(frozen=True)
class Few:
    """Chunks of two batches, one of them packed."""

    seed: int = 0

    def chunk(self, number: int) -> list[Batch]:
        return [batch(1000 * self.seed + number), batch(7000 + number, packed=True)]


def quiet(_: CacheReport) -> None:
    pass


def built(tmp: Path, given_settings: CacheSettings, num_chunks: int = 2) -> CachedTeacher:
    scorer = ModelScorer(teacher(), CPU)
    return CachedTeacher(build_cache(tmp, scorer, Few(), num_chunks, given_settings, on_report=quiet))


@pytest.mark.parametrize("proposal", [1.0, 0.7])
def test_the_mean_gradient_of_drawn_ids_is_the_dense_one(proposal: float) -> None:
    """10,000 draws of 12 ids: within 1 % of the exact gradient, whatever the ids are drawn from."""
    rng = torch.Generator().manual_seed(0)
    log_p = (torch.randn(1, 40, generator=rng, dtype=torch.float64) * 2).log_softmax(-1)
    q = (torch.randn(1, 40, generator=rng, dtype=torch.float64) * 2).softmax(-1)
    chosen = CacheSettings(k=12, proposal=proposal)
    ids, weights, _ = draw(log_p.expand(10_000, -1), chosen, rng)
    mean = torch.zeros(40, dtype=torch.float64)
    there = ids >= 0
    mean.scatter_add_(0, ids[there], weights[there].double() / 12 / 10_000)
    total = weights.double().sum() / 12 / 10_000
    sought, found = q[0] - log_p[0].exp(), total * q[0] - mean
    assert float((found - sought).norm() / sought.norm()) < 0.01
    if proposal == 1.0:
        torch.testing.assert_close(weights.sum(-1), torch.full((10_000,), 12.0))


def test_equal_draws_are_merged_and_counted() -> None:
    sure = torch.tensor([[0.0, -40.0, -40.0]]).log_softmax(-1)
    ids, weights, rest = draw(sure, CacheSettings(k=4), torch.Generator().manual_seed(0))
    assert ids.tolist() == [[0, -1, -1, -1]] and weights.tolist() == [[4.0, 0.0, 0.0, 0.0]] and rest.tolist() == [0.0]


def test_the_top_k_and_the_rest_add_up() -> None:
    log_p = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    ids, log_probs, log_rest = top(log_p, 6)
    torch.testing.assert_close(log_probs.exp().sum(-1) + log_rest.exp(), torch.ones(5))
    assert ids[0].tolist() == log_p[0].topk(6).indices.tolist()


def loss_and_gradient(source, which: Batch, divergence: Divergence = FORWARD_KL) -> tuple[float, torch.Tensor]:
    student = decoder(3)
    found = Distillation(source, divergence=divergence)(student, which, CPU)
    return float(found.total.detach()), gradients(found.total, student)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_cache_of_every_id_gives_the_online_loss_to_storage_precision(tmp_path: Path, beta: float) -> None:
    cached = built(tmp_path, CacheSettings(method="top_k", k=VOCAB))
    divergence = Divergence(beta=beta)
    for which in Few().chunk(1):
        kept, kept_gradient = loss_and_gradient(cached, which, divergence)
        exact, gradient = loss_and_gradient(teacher(), which, divergence)
        assert kept == pytest.approx(exact, rel=2e-3)
        assert float((kept_gradient - gradient).norm() / gradient.norm()) < 5e-3


def test_many_drawn_ids_come_near_the_online_loss(tmp_path: Path) -> None:
    cached = built(tmp_path, CacheSettings(k=2000), num_chunks=1)
    which = Few().chunk(0)[1]
    kept, kept_gradient = loss_and_gradient(cached, which)
    exact, gradient = loss_and_gradient(teacher(), which)
    assert kept == pytest.approx(exact, rel=0.05)
    assert float((kept_gradient - gradient).norm() / gradient.norm()) < 0.1


def test_the_temperature_is_the_caches(tmp_path: Path) -> None:
    cached = built(tmp_path, CacheSettings(method="top_k", k=VOCAB, temperature=2.0))
    warm = Divergence(temperature=2.0)
    kept, _ = loss_and_gradient(cached, Few().chunk(0)[0], warm)
    exact, _ = loss_and_gradient(teacher(), Few().chunk(0)[0], warm)
    assert kept == pytest.approx(exact, rel=2e-3)
    with pytest.raises(InvalidRequestError, match="temperature 2"):
        Distillation(cached)


def test_drawn_ids_are_refused_for_other_divergences(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="forward KL only"):
        Distillation(built(tmp_path, CacheSettings()), divergence=REVERSE_KL)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 5), k=st.integers(1, 6), seed=st.integers(0, 99), vocab=st.sampled_from([90, 65_534, 70_000])
)
def test_records_come_back_as_they_were(count: int, k: int, seed: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = record_dtype(CacheSettings(method="top_k", k=k), vocab)
    kept = Kept(
        rng.integers(-1, vocab, (count, k)),
        rng.random((count, k)).astype(np.float16).astype(np.float32),
        rng.random(count).astype(np.float16).astype(np.float32),
        0.0,
    )
    ids, weights, rest = unpack(pack(kept, dtype))
    assert rest is not None
    assert (ids == kept.ids).all() and (weights == kept.weights).all() and (rest == kept.rest).all()
    assert dtype.itemsize == k * (4 if vocab <= 65_534 else 6) + 2


def test_a_learned_token_takes_48_bytes() -> None:
    assert record_dtype(CacheSettings(), 4096).itemsize == 48


def test_the_size_is_told_before_it_starts_and_the_rest_as_it_goes(tmp_path: Path) -> None:
    reports: list[CacheReport] = []
    folder = build_cache(tmp_path, ModelScorer(teacher(), CPU), Few(), 3, CacheSettings(), on_report=reports.append)
    assert reports[0].num_done == 0 and reports[0].tokens_per_s == 0 and reports[-1].num_done == 3
    assert reports[-1].tokens_per_s > 0 and reports[-1].left_s == 0 and reports[1].left_s > 0
    stored = sum(path.stat().st_size for path in folder.glob("*.npy"))
    assert reports[0].bytes_total == pytest.approx(stored, rel=0.35)
    assert reports[-1].bytes_total == pytest.approx(stored - 3 * 128, abs=3 * 192)


def test_other_inputs_are_another_cache(tmp_path: Path) -> None:
    base = CacheSettings(k=4)
    made = {
        build_cache(tmp_path, ModelScorer(one, CPU), stream, 1, chosen, on_report=quiet).name
        for one in (teacher(1), teacher(2))
        for stream in (Few(0), Few(1))
        for chosen in (base, replace(base, k=5), replace(base, seed=1), replace(base, method="top_k"))
    }
    assert len(made) == 16


def test_an_unknown_batch_is_refused(tmp_path: Path) -> None:
    cached = built(tmp_path, CacheSettings(k=4), num_chunks=1)
    with pytest.raises(CheckpointError, match="not among the 2 of the teacher cache"):
        cached.signal(batch(12345), CPU)
    with pytest.raises(CheckpointError, match="found none"):
        CachedTeacher(tmp_path)


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    cached = built(tmp_path, CacheSettings(k=4), num_chunks=1)
    shard = next(cached.folder.glob("*.npy"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        CachedTeacher(cached.folder).signal(Few().chunk(0)[1], CPU)


def test_a_disk_too_small_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(InvalidRequestError, match="MB free"):
        built(tmp_path, CacheSettings())
    with pytest.raises(InvalidRequestError, match="k is 97"):
        built(tmp_path, CacheSettings(method="top_k", k=97))


_BUILD = """
import sys, time
from pathlib import Path
from smelt.train.teachers.cache import build_cache
from smelt.train.teachers.cache_format import CacheSettings
from smelt.train.teachers.cache_scorer import ModelScorer
from tests.train.distill.distilling import CPU, teacher
from tests.train.teachers.test_cache import Few
def told(report):
    print(report.num_done, flush=True)
    time.sleep(0.05)
build_cache(Path(sys.argv[1]), ModelScorer(teacher(), CPU), Few(), 12, CacheSettings(k=4), on_report=told)
"""


def test_a_kill_leaves_what_was_done_and_the_rerun_does_the_rest(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _BUILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 3:
        pass
    os.kill(process.pid, signals.SIGKILL)
    process.wait(20)
    process.stdout.close()
    (folder,) = tmp_path.iterdir()
    done = sorted(folder.glob("*.json"))
    kept = {path: path.stat().st_mtime_ns for path in done if path.name != "cache.json"}
    assert 3 <= len(kept) < 12
    time.sleep(0.01)
    again = build_cache(tmp_path, ModelScorer(teacher(), CPU), Few(), 12, CacheSettings(k=4), on_report=quiet)
    assert again == folder and all(path.stat().st_mtime_ns == at for path, at in kept.items())
    straight = build_cache(tmp_path / "b", ModelScorer(teacher(), CPU), Few(), 12, CacheSettings(k=4), on_report=quiet)
    for path in straight.glob("chunk-*"):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert json.loads((folder / "cache.json").read_text())["vocab_len"] == VOCAB


def test_a_batch_is_named_by_all_it_says() -> None:
    one = batch(packed=True)
    other_targets = one.targets.copy()
    other_targets[0, 0] = 5
    names = {batch_digest(b) for b in (one, Batch(one.inputs, one.targets), replace(one, targets=other_targets))}
    assert len(names) == 3 and batch_digest(batch(packed=True)) in names
