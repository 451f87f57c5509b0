"""The distillation objective: the parts add up, masked tokens and packing are respected, and it pays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from smelt.core.errors import InvalidRequestError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.config import ScheduleConfig, TrainConfig
from smelt.train.distill.divergence import FORWARD_KL, REVERSE_KL, Divergence
from smelt.train.distill.hidden import HiddenMatch, HiddenTerms
from smelt.train.distill.objective import Distillation
from smelt.train.distill.on_policy import OnPolicy
from smelt.train.loop import Run, Stage
from smelt.train.objectives import CrossEntropy, learned_hidden
from smelt.train.teachers.cache import CachedTeacher, build_cache
from smelt.train.teachers.cache_format import CacheSettings
from smelt.train.teachers.cache_scorer import ModelScorer
from smelt.train.teachers.online import DecoderTeacher
from tests.train.distill.distilling import CPU, VOCAB, batch, decoder, gradients, teacher


class One:
    """A stream of one batch."""

    def chunk(self, _: int) -> list[Batch]:
        return [batch()]


def test_it_is_the_plain_formula_on_whole_logits() -> None:
    """Chunked through the head's matrix against [tokens, V] at once, loss and gradients."""
    student, one, which = decoder(), teacher(), batch(packed=True)
    found = Distillation(one, divergence=Divergence(beta=0.3, temperature=2.0), ratio=0.7)(student, which, CPU)
    ours = student.logits(learned_hidden(student, which, CPU))
    theirs = one.model.logits(learned_hidden(one.model, which, CPU))
    targets = torch.from_numpy(which.targets[which.targets >= 0])
    q, p = (ours / 2).softmax(-1), (theirs / 2).softmax(-1)
    m = 0.3 * p + 0.7 * q
    jsd = 0.3 * (p * (p / m).log()).nansum() + 0.7 * (q * (q / m).log()).nansum()
    plain = 0.3 * torch.nn.functional.cross_entropy(ours, targets, reduction="sum") + 0.7 * 4 * jsd
    torch.testing.assert_close(found.total, plain, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gradients(found.total, student), gradients(plain, student), rtol=1e-3, atol=2e-3)
    assert found.count == len(targets)
    assert found.logs["ce"] * 0.3 + found.logs["kd"] * 0.7 == pytest.approx(float(found.total.detach()), rel=1e-5)


def test_tokens_that_are_not_learned_change_nothing() -> None:
    which = batch(learned=0.5)
    other = batch(learned=0.5)
    last = np.flatnonzero(which.targets[0] >= 0)[-1]
    other.inputs[0, last + 1 :] = 7  # behind the last learned token of its row: seen by none that counts
    objective = Distillation(teacher())
    totals = [objective(decoder(), one, CPU).total for one in (which, other)]
    torch.testing.assert_close(*totals)


def test_packed_rows_equal_documents_alone() -> None:
    packed, student, objective = batch(packed=True, learned=1.0), decoder(), Distillation(teacher())
    whole = objective(student, packed, CPU)
    parts = []
    for row in range(3):
        for segment in (0, 1):
            inside = packed.segment_ids[row] == segment
            alone = Batch(packed.inputs[row][inside][None], packed.targets[row][inside][None])
            parts.append(objective(student, alone, CPU))
    torch.testing.assert_close(whole.total, sum(part.total for part in parts), rtol=1e-4, atol=1e-4)
    assert whole.count == sum(part.count for part in parts)


def test_a_student_that_is_its_teacher_gets_no_gradient() -> None:
    one = teacher(4)
    student = decoder(4)
    found = Distillation(one, divergence=REVERSE_KL)(student, batch(), CPU)
    assert abs(float(found.total.detach())) < 1e-3 and float(gradients(found.total, student).abs().max()) < 1e-3


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_hidden_terms_teach_and_their_projections_learn(kind: str) -> None:
    student, one = decoder(), teacher(hidden_size=32)
    terms = HiddenTerms(HiddenMatch(pairs=((0, 0), (1, 1)), kind=kind, weight=0.5), student, one.model)
    objective = Distillation(one, hidden=terms)
    assert [tuple(p.shape) for p in objective.parameters()] == [(32, 48)] * 2  # and no weight of the teacher
    optimizer = torch.optim.Adam([*student.parameters(), *objective.parameters()], lr=3e-3)
    hidden = []
    for _ in range(20):
        found = objective(student, batch(), CPU)
        hidden.append(found.logs["hidden"])
        optimizer.zero_grad()
        (found.total / found.count).backward()
        optimizer.step()
    assert hidden[-1] < 0.8 * hidden[0]
    assert all(float(p.grad.abs().max()) > 0 for p in objective.parameters())


def test_hidden_terms_of_equal_models_are_zero() -> None:
    student, one = decoder(4), teacher(4)
    for kind in ("cosine", "mse"):
        terms = HiddenTerms(HiddenMatch(pairs=((1, 1),), kind=kind), student, one.model)
        assert abs(Distillation(one, hidden=terms)(student, batch(), CPU).logs["hidden"]) < 1e-4
    with pytest.raises(InvalidRequestError, match="layers 0 to 1"):
        HiddenTerms(HiddenMatch(pairs=((2, 0),)), student, one.model)
    with pytest.raises(InvalidRequestError, match="at least one pair"):
        HiddenMatch(pairs=())


def test_on_policy_batches_are_scored_by_the_teacher_alone() -> None:
    student, one = decoder(), teacher()
    policy = OnPolicy(share=1.0, max_new=5, vocab_len=VOCAB)
    found = Distillation(one, divergence=REVERSE_KL, ratio=0.5, on_policy=policy)(student, batch(), CPU)
    own = policy.continued(student, batch(), CPU)
    assert own is not None
    sought = Distillation(one, divergence=REVERSE_KL)(student, own, CPU)
    torch.testing.assert_close(found.total, sought.total)
    assert found.count == own.num_learned and "ce" not in found.logs


def test_parts_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    scorer = ModelScorer(teacher(), CPU)
    cached = CachedTeacher(build_cache(tmp_path, scorer, One(), 1, CacheSettings(), on_report=lambda _: None))
    with pytest.raises(InvalidRequestError, match="teacher in memory"):
        Distillation(cached, on_policy=OnPolicy(vocab_len=VOCAB))
    with pytest.raises(InvalidRequestError, match="ratio is 0"):
        Distillation(teacher(), ratio=0)


def test_its_name_tells_what_it_does() -> None:
    policy = OnPolicy(vocab_len=VOCAB)
    names = {
        Distillation(teacher()).name,
        Distillation(teacher(2)).name,
        Distillation(teacher(), ratio=0.5).name,
        Distillation(teacher(), divergence=Divergence(temperature=2.0)).name,
        Distillation(teacher(), divergence=Divergence(beta=0.5)).name,
        Distillation(teacher(), on_policy=policy).name,
    }
    assert len(names) == 6


@dataclass(frozen=True)
class Rows:
    """Two batches a chunk, one packed."""

    def chunk(self, number: int) -> list[Batch]:
        return [batch(2 * number), batch(2 * number + 1, packed=True)]


def a_run(folder: Path) -> tuple[Run, Distillation]:
    student, one = decoder(), teacher()
    objective = Distillation(
        one,
        divergence=Divergence(beta=0.5),
        ratio=0.8,
        hidden=HiddenTerms(HiddenMatch(pairs=((1, 1),)), student, one.model),
        on_policy=OnPolicy(share=0.5, max_new=4, vocab_len=VOCAB),
    )
    config = TrainConfig(schedule=ScheduleConfig(total_steps=8, warmup_steps=2), accumulate=2, workers=2, device="cpu")
    stage = Stage(name="distil", stream=Rows(), objective=objective)
    return Run(model=student, stages=[stage], config=config, folder=folder, on_report=lambda _: None), objective


def test_a_stopped_run_ends_to_the_bit_where_a_straight_one_does(tmp_path: Path) -> None:
    """On-policy text, hidden-state terms and their projection included, over two workers."""
    straight, projections = a_run(tmp_path / "straight")
    straight.train()
    for _ in range(2):
        stopped, others = a_run(tmp_path / "stopped")
        stopped.train(stop_after=3)
    stopped, others = a_run(tmp_path / "stopped")
    assert stopped.train().step == 8
    for one, other in ((straight.model, stopped.model), (projections, others)):
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(projections.parameters()), torch.eye(48))  # it was trained


def rule_teacher(seed: int) -> tuple[Decoder, np.random.Generator]:
    return decoder(100 + seed, spread=1.2), np.random.default_rng(seed)


def drawn_text(model: Decoder, rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Text that a random model wrote: its own distribution is then the perfect teacher of it."""
    ids = torch.from_numpy(rng.integers(2, VOCAB, (rows, 1)))
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
    with torch.no_grad():
        for _ in range(length):
            last = model(ids)[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(last, 1, generator=generator)], dim=1)
    return ids.numpy()


@pytest.mark.slow
def test_a_distilled_student_beats_one_trained_on_the_text_at_equal_steps() -> None:
    """Three seeds; same initial weights, same batches, same steps; cross-entropy on held-out text decides."""
    for seed in range(3):
        source, rng = rule_teacher(seed)
        train, held_out = drawn_text(source, rng, 64, 16), drawn_text(source, rng, 64, 16)
        losses = {}
        for objective in (CrossEntropy(), Distillation(DecoderTeacher(source, VOCAB), divergence=FORWARD_KL)):
            student = decoder(seed, spread=0.5, hidden_size=32, intermediate_size=48)
            optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
            for step in range(60):
                rows = train[np.random.default_rng((seed, step)).integers(0, 64, 16)]
                found = objective(student, Batch(rows[:, :-1], rows[:, 1:]), CPU)
                optimizer.zero_grad()
                (found.total / found.count).backward()
                optimizer.step()
            with torch.no_grad():
                test = CrossEntropy()(student, Batch(held_out[:, :-1], held_out[:, 1:]), CPU)
            losses[objective.name] = float(test.total) / test.count
        told, distilled = losses.values()
        assert distilled < 0.99 * told
