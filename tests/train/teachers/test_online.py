"""Teachers and their signals: exact where they are dense, honest about the rest where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.core.errors import InvalidRequestError, UnsupportedError
from smelt.tokenizer import Tokenizer, train_tokenizer
from smelt.train.distill.divergence import FORWARD_KL, REVERSE_KL, Divergence
from smelt.train.objectives import learned_hidden
from smelt.train.teachers.cache_scorer import top
from smelt.train.teachers.online import load_teacher, shared_vocabulary
from smelt.train.teachers.signals import Dense, Sampled, TopK
from tests.tiny import make_tiny_folder
from tests.train.distill.distilling import CPU, VOCAB, batch, decoder, gradients, teacher

ALL = slice(0, None)
EVERY = [FORWARD_KL, REVERSE_KL, Divergence(beta=0.3), Divergence(beta=0.5, temperature=2.0)]


def logits(seed: int, rows: int = 7, width: int = 40) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def dense(teacher_logits: torch.Tensor) -> Dense:
    """A teacher whose head is the identity, so that its hidden states are its logits."""
    width = teacher_logits.shape[1]
    return Dense(teacher_logits, torch.eye(width, dtype=teacher_logits.dtype), width)


def kept_all(teacher_logits: torch.Tensor, k: int, temperature: float = 1.0) -> TopK:
    ids, log_probs, log_rest = top((teacher_logits / temperature).log_softmax(-1), k)
    return TopK(ids, log_probs, log_rest, teacher_logits.shape[1])


def value_and_grad(signal, student: torch.Tensor, divergence: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = student.clone().requires_grad_()
    loss = signal.loss(leaf, ALL, divergence)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("divergence", EVERY, ids=lambda d: d.name)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(divergence: Divergence) -> None:
    loss, grad = value_and_grad(dense(logits(0)), logits(0), divergence)
    assert abs(float(loss)) < 1e-12 and float(grad.abs().max()) < 1e-12


@pytest.mark.parametrize("divergence", EVERY, ids=lambda d: d.name)
def test_the_top_k_with_every_id_is_the_dense_teacher(divergence: Divergence) -> None:
    exact = value_and_grad(dense(logits(0)), logits(1), divergence)
    kept = value_and_grad(kept_all(logits(0), 40, divergence.temperature), logits(1), divergence)
    torch.testing.assert_close(kept, exact, atol=1e-10, rtol=1e-10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 39), beta=st.sampled_from([0.0, 0.4, 1.0]))
def test_the_rest_bucket_never_overstates_the_divergence(seed: int, k: int, beta: float) -> None:
    """Merging classes loses information (data-processing inequality); renormalising the top k would not obey this."""
    divergence = Divergence(beta=beta)
    whole, _ = value_and_grad(dense(logits(seed)), logits(seed + 1), divergence)
    kept, _ = value_and_grad(kept_all(logits(seed), k), logits(seed + 1), divergence)
    assert -1e-9 < float(kept) <= float(whole) + 1e-9


def test_the_rest_bucket_leaves_a_right_student_alone_and_renormalising_would_not() -> None:
    """With the top k scaled up to 1, a student equal to its teacher would be pushed to be surer than it."""
    kept = kept_all(logits(0), 4)
    _, grad = value_and_grad(kept, logits(0), FORWARD_KL)
    assert float(grad.abs().max()) < 1e-9
    scaled = TopK(kept.ids, kept.log_probs.log_softmax(-1), torch.full((7,), -torch.inf), 40)
    _, biased = value_and_grad(scaled, logits(0), FORWARD_KL)
    assert float(biased.abs().max()) > 0.05


def test_a_place_without_an_id_counts_as_nothing() -> None:
    kept = kept_all(logits(0), 4)
    none = torch.full((7, 3), -1)
    zeros = torch.full((7, 3), -torch.inf)
    padded = TopK(torch.cat([kept.ids, none], 1), torch.cat([kept.log_probs, zeros], 1), kept.log_rest, kept.vocab_len)
    for divergence in EVERY[:3]:
        torch.testing.assert_close(
            value_and_grad(padded, logits(1), divergence), value_and_grad(kept, logits(1), divergence)
        )


def test_temperature_squared_keeps_the_size_of_gradients() -> None:
    sizes = []
    for temperature in (1.0, 2.0, 4.0):
        divergence = Divergence(temperature=temperature)
        _, grad = value_and_grad(dense(logits(0) * 0.05), logits(1) * 0.05, divergence)
        sizes.append(float(grad.norm()))
    assert max(sizes) / min(sizes) < 1.05


@pytest.mark.parametrize("divergence", EVERY, ids=lambda d: d.name)
def test_padded_heads_meet_on_the_real_vocabulary(divergence: Divergence) -> None:
    """Qwen's 151,936 against 152,064 rows: both heads padded, differently, behind one vocabulary."""
    theirs = torch.cat([logits(0), logits(5, width=3) + 9], dim=1)  # a teacher sure of rows that mean nothing
    ours = torch.cat([logits(1), torch.full((7, 5), -1e4, dtype=torch.float64)], dim=1)
    signal = Dense(theirs, torch.eye(43, dtype=torch.float64), 40)
    padded, grad = value_and_grad(signal, ours, divergence)
    plain, plain_grad = value_and_grad(dense(logits(0)), logits(1), divergence)
    torch.testing.assert_close(padded, plain)
    torch.testing.assert_close(grad[:, :40], plain_grad)
    assert float(grad[:, 40:].abs().max()) == 0


def test_a_student_that_trusts_padded_rows_is_drawn_away_from_them() -> None:
    ours = torch.cat([logits(0), torch.full((7, 2), 3.0, dtype=torch.float64)], dim=1)
    loss, grad = value_and_grad(dense(logits(0)), ours, FORWARD_KL)
    whole_p = torch.cat([logits(0).softmax(-1), torch.zeros(7, 2, dtype=torch.float64)], dim=1)
    sought = (whole_p * (whole_p.clamp_min(1e-300).log() - ours.log_softmax(-1))).sum()
    torch.testing.assert_close(loss, sought)
    torch.testing.assert_close(grad, ours.softmax(-1) - whole_p)


def test_drawn_ids_give_forward_kl_only() -> None:
    drawn = Sampled(torch.zeros(7, 2, dtype=torch.long), torch.ones(7, 2) / 2, 0.0, 40)
    with pytest.raises(ValueError, match="forward KL"):
        drawn.loss(logits(0), ALL, REVERSE_KL)


@pytest.mark.parametrize("wrong", [{"beta": -0.1}, {"beta": 1.1}, {"temperature": 0.0}, {"temperature": float("inf")}])
def test_impossible_divergences_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError):
        Divergence(**wrong)


def test_a_models_signal_is_its_own_logits_on_packed_documents() -> None:
    one, student = teacher(), decoder()
    packed = batch(packed=True)
    signal = one.signal(packed, CPU)
    everything = one.model(torch.from_numpy(packed.inputs), segment_ids_BT=torch.from_numpy(packed.segment_ids))
    learned = torch.from_numpy(packed.targets >= 0)
    torch.testing.assert_close(signal.logits(ALL), everything[learned])
    assert not any(parameter.requires_grad for parameter in one.model.parameters())
    # Another first document changes nothing that is said of the second one.
    other = batch(packed=True)
    other.inputs[:, :6] = (other.inputs[:, :6] + 1) % VOCAB
    second = (packed.segment_ids == 1)[packed.targets >= 0]
    torch.testing.assert_close(one.signal(other, CPU).logits(ALL)[second], signal.logits(ALL)[second])
    assert gradients(learned_hidden(student, packed, CPU).sum(), student).abs().max() > 0


def test_the_same_vocabulary_is_told_by_content(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_folder)
    one = load_teacher(tiny_folder, tokenizer)
    assert one.vocab_len == tokenizer.vocab_size
    other = make_tiny_folder(tmp_path / "other", seed=5)
    assert load_teacher(other, tokenizer).fingerprint != one.fingerprint
    assert load_teacher(tiny_folder, tokenizer).fingerprint == one.fingerprint


def test_another_vocabulary_is_refused_with_sizes_and_the_first_difference() -> None:
    text = ["one two three four five six seven"] * 3
    controls = ("<|bos|>", "<|end|>")
    first, second = (train_tokenizer(text, size, controls=controls) for size in (262, 265))
    with pytest.raises(
        UnsupportedError, match=r"\(262 and 265 ids\): id 260 is the control token .* b'ee' for the teacher"
    ):
        shared_vocabulary(first, second)
    renamed = train_tokenizer(text, 262, controls=("<|bos|>", "<|stop|>"))
    with pytest.raises(
        UnsupportedError, match=r"control token <\|end\|> for the student .* <\|stop\|> for the teacher"
    ):
        shared_vocabulary(first, renamed)
    assert shared_vocabulary(first, train_tokenizer(text, 262, controls=controls)) == first.vocab_size


def test_a_head_shorter_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="96 rows"):
        teacher(vocab_len=97)
