"""Preference tuning: ln 2 at first, the right sign, a slow twin, and references that survive being kept."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.data.batches import Batch, Encoded
from smelt.data.preferences import EncodedPair, PairStream, collate_pairs
from smelt.model.decoder import Decoder
from smelt.train.align import reference
from smelt.train.align.preference import PairPreference, PreferenceConfig, answer_log_probs
from smelt.train.align.reference import reference_log_probs, reference_path
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.loop import Report, Run, Stage
from tests.tiny import random_tensors, tiny_config

CPU = torch.device("cpu")


def model(seed: int = 0, **changes: int) -> Decoder:
    config = tiny_config("gemma3_text", num_layers=2, **changes)
    return Decoder.from_tensors(config, random_tensors(config, seed, spread=0.5))


def document(rng: np.random.Generator, prompt: list[int], answer_len: int) -> Encoded:
    ids = [*prompt, *rng.integers(2, 90, answer_len).tolist()]
    return Encoded(ids, bytes(len(prompt)) + b"\1" * answer_len, b"\2" * len(prompt) + b"\3" * answer_len)


def some_pairs(num: int = 5, seed: int = 1) -> list[EncodedPair]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, 90, int(rng.integers(1, 9))).tolist() for _ in range(num)]
    lengths = rng.integers(1, 12, (num, 2))
    return [
        EncodedPair(document(rng, prompt, int(a)), document(rng, prompt, int(b)))
        for prompt, (a, b) in zip(prompts, lengths, strict=True)
    ]


def swapped(pairs: list[EncodedPair]) -> list[EncodedPair]:
    return [EncodedPair(pair.rejected, pair.chosen) for pair in pairs]


@torch.no_grad()
def slow_log_prob(decoder: Decoder, encoded: Encoded) -> float:
    """One document alone, the whole vocabulary at every place."""
    logprobs = decoder(torch.tensor([encoded.ids])).double().log_softmax(-1)[0]
    places = [i for i in range(1, len(encoded.ids)) if encoded.loss_mask[i]]
    return float(sum(logprobs[i - 1, encoded.ids[i]] for i in places))


@torch.no_grad()
def test_a_packed_batch_equals_each_document_alone() -> None:
    decoder, pairs = model(), some_pairs()
    sums, lengths = answer_log_probs(decoder, collate_pairs(pairs, 0), CPU)
    sought = [[slow_log_prob(decoder, pair.chosen), slow_log_prob(decoder, pair.rejected)] for pair in pairs]
    np.testing.assert_allclose(sums.numpy(), sought, atol=1e-4)
    assert lengths.tolist() == [[sum(pair.chosen.loss_mask), sum(pair.rejected.loss_mask)] for pair in pairs]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_first_loss_is_ln_2(tmp_path: Path, smoothing: float) -> None:
    decoder, pairs = model(), some_pairs()
    references = reference_log_probs(decoder, pairs, tmp_path, pad_id=0)
    objective = PairPreference(config=PreferenceConfig(label_smoothing=smoothing))
    live = answer_log_probs(decoder, collate_pairs(pairs, 0), CPU)[0].detach().numpy()
    exact = objective(decoder, collate_pairs(pairs, 0, live), CPU)
    assert float(exact.total.detach()) / exact.count == pytest.approx(math.log(2), abs=1e-15)
    kept = objective(decoder, collate_pairs(pairs, 0, references), CPU)
    assert float(kept.total.detach()) / kept.count == pytest.approx(math.log(2), abs=1e-6)
    assert kept.count == len(pairs)


def test_kept_references_equal_live_ones(tmp_path: Path) -> None:
    decoder, pairs = model(), some_pairs(8)
    references = reference_log_probs(decoder, pairs, tmp_path, pad_id=0)
    with torch.no_grad():
        live = answer_log_probs(decoder, collate_pairs(pairs, 0), CPU)[0].numpy()
    np.testing.assert_allclose(references, live, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_swapping_the_answers_flips_the_margin(kind: str) -> None:
    decoder, pairs = model(), some_pairs()
    other = model(7)
    found = []
    for each in (pairs, swapped(pairs)):
        with torch.no_grad():
            references = answer_log_probs(other, collate_pairs(each, 0), CPU)[0].numpy()
        objective = PairPreference(config=PreferenceConfig(kind=kind))  # type: ignore[arg-type]
        found.append(objective(decoder, collate_pairs(each, 0, references), CPU).logs)
    assert found[0]["margin"] == pytest.approx(-found[1]["margin"], rel=1e-9)
    assert found[0]["accuracy"] == len(pairs) - found[1]["accuracy"]
    assert found[0]["reward_chosen"] == pytest.approx(found[1]["reward_rejected"], rel=1e-9)


def test_a_step_down_the_gradient_prefers_the_chosen_answer() -> None:
    decoder, pairs = model(), some_pairs()
    objective, device = PairPreference(), CPU
    references = answer_log_probs(decoder, collate_pairs(pairs, 0), device)[0].detach().numpy()
    batch = collate_pairs(pairs, 0, references)
    objective(decoder, batch, device).total.backward()
    with torch.no_grad():
        for parameter in decoder.parameters():
            assert parameter.grad is not None
            parameter -= 1e-3 * parameter.grad
        logs = objective(decoder, batch, device).logs
    assert logs["margin"] > 0
    assert logs["reward_chosen"] > logs["reward_rejected"]


def test_ipo_weighs_mean_log_probabilities_and_rpo_adds_the_chosen_ones() -> None:
    decoder, pairs = model(), some_pairs(3)
    sums = np.array([[slow_log_prob(decoder, p.chosen), slow_log_prob(decoder, p.rejected)] for p in pairs])
    lengths = np.array([[sum(p.chosen.loss_mask), sum(p.rejected.loss_mask)] for p in pairs])
    references = sums - np.array([[1.0, -2.0], [0.5, 0.25], [-1.0, 2.0]])
    batch = collate_pairs(pairs, 0, references)
    margins = ((sums - references) / lengths) @ [1.0, -1.0]
    ipo = PairPreference(config=PreferenceConfig(kind="ipo", beta=0.2))(decoder, batch, CPU)
    assert float(ipo.total.detach()) == pytest.approx(float(((margins - 2.5) ** 2).sum()), rel=1e-4)
    plain = PairPreference()(decoder, batch, CPU)
    rpo = PairPreference(config=PreferenceConfig(rpo_alpha=0.5))(decoder, batch, CPU)
    sought = -0.5 * float((sums[:, 0] / lengths[:, 0]).sum())
    assert float((rpo.total - plain.total).detach()) == pytest.approx(sought, rel=1e-5)


def test_privileges_reach_the_model() -> None:
    decoder, pairs = model(num_privileges=6), some_pairs(2)
    with torch.no_grad():
        before = answer_log_probs(decoder, collate_pairs(pairs, 0), CPU)[0]
        decoder.get_parameter("model.embed_privileges.weight")[2] += 1.0
        after = answer_log_probs(decoder, collate_pairs(pairs, 0), CPU)[0]
    assert (before - after).abs().min() > 1e-4


def test_a_killed_reference_pass_computes_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, pairs = model(), some_pairs(6)
    whole = reference_log_probs(decoder, pairs, tmp_path / "whole", pad_id=0)
    seen: list[int] = []

    def counting(*arguments: object) -> object:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return answer_log_probs(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "answer_log_probs", counting)
    with pytest.raises(KeyboardInterrupt):
        reference_log_probs(decoder, pairs, tmp_path / "pieces", pad_id=0, save_s=0.0)
    found = reference_log_probs(decoder, pairs, tmp_path / "pieces", pad_id=0)
    assert len(seen) == 4 + 3
    assert np.array_equal(found, whole)


def test_other_weights_or_other_pairs_have_another_file(tmp_path: Path) -> None:
    pairs = some_pairs()
    paths = {
        reference_path(model(), pairs, tmp_path),
        reference_path(model(1), pairs, tmp_path),
        reference_path(model(), swapped(pairs), tmp_path),
        reference_path(model(), pairs[:-1], tmp_path),
    }
    assert len(paths) == 4


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    decoder, pairs = model(), some_pairs()
    path = reference_path(decoder, pairs, tmp_path)
    path.write_bytes(b"not numpy")
    with pytest.raises(CheckpointError, match="cannot be read"):
        reference_log_probs(decoder, pairs, tmp_path, pad_id=0)
    np.save(path, np.zeros((2, 2)))
    with pytest.raises(CheckpointError, match=r"sought float64 \[5, 2\]"):
        reference_log_probs(decoder, pairs, tmp_path, pad_id=0)


def test_the_loop_learns_the_preference(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    decoder, pairs = model(), some_pairs(8)
    references = reference_log_probs(decoder, pairs, tmp_path, pad_id=0)
    stream = PairStream(pairs=pairs, references=references, pad_id=0, pairs_per_batch=4, seed=0)
    reports: list[Report] = []
    config = TrainConfig(
        schedule=ScheduleConfig(total_steps=12, warmup_steps=1),
        optimizer=OptimizerConfig(muon_lr=2e-3, adam_lr=3e-4),
        log_every=1,
    )
    stages = [Stage(name="dpo", stream=stream, objective=PairPreference())]
    Run(model=decoder, stages=stages, config=config, folder=tmp_path / "run", on_report=reports.append).train()
    assert reports[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert reports[-1].loss < 0.6
    assert reports[-1].logs["accuracy"] == 1.0
    assert reports[-1].logs["margin"] > 0.1


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": 2.5}, {"label_smoothing": 0.5}, {"rpo_alpha": -1.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        PreferenceConfig(**wrong)  # type: ignore[arg-type]


def test_a_batch_without_references_is_refused() -> None:
    batch = collate_pairs(some_pairs(), 0)
    for wrong in (batch, Batch(batch.inputs, batch.targets)):
        with pytest.raises(InvalidRequestError, match="reference log-probabilities"):
            PairPreference()(model(), wrong, CPU)
