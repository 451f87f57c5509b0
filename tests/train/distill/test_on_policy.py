"""The student's own text: what is drawn, from whom, and that it can be drawn again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from smelt.core.errors import InvalidRequestError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.distill.on_policy import OnPolicy, documents, sample
from tests.train.distill.distilling import CPU, VOCAB, batch, decoder

ALWAYS = OnPolicy(share=1.0, max_new=6, vocab_len=VOCAB, end_ids=frozenset({1}), seed=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_by_one(model: Decoder, prompt: np.ndarray, uniform: np.ndarray, settings: OnPolicy) -> list[int]:
    """The slow twin: no cache, no batch."""
    text = list(prompt)
    for number in uniform:
        logits = model(torch.tensor([text]))[0, -1, : settings.vocab_len].double() / settings.temperature
        cumulative = logits.softmax(-1).cumsum(-1).numpy()
        text.append(int(np.searchsorted(cumulative, number * cumulative[-1], side="right")))
        if text[-1] in settings.end_ids:
            break
    return text[len(prompt) :]


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_batched_sampling_gives_what_each_row_alone_would(family: str) -> None:
    """Prompts of unequal length share one cache; gemma's sliding window is passed on the way."""
    model = decoder(spread=0.8) if family == "qwen3" else gemma()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, VOCAB, size) for size in (3, 9, 5, 1)]
    ends = replace(ALWAYS, end_ids=frozenset(range(60, 90)))
    with torch.no_grad():
        rows = sample(model, prompts, ends, limit=12, generator=generator(), device=CPU)
        uniform = torch.rand((4, 12), generator=generator(), dtype=torch.float64).numpy()
        alone = [one_by_one(model, prompt, uniform[i], ends) for i, prompt in enumerate(prompts)]
    assert [row.tolist() for row in rows] == alone
    assert len({len(row) for row in rows}) > 1  # some ended early


def gemma() -> Decoder:
    from tests.tiny import random_tensors, tiny_config

    config = tiny_config("gemma3_text", num_layers=2)
    return Decoder.from_tensors(config, random_tensors(config, 0))


def test_draws_follow_the_distribution() -> None:
    model = decoder(spread=0.7)
    prompt = np.array([5, 6, 7])
    with torch.no_grad():
        rows = sample(model, [prompt] * 4000, ALWAYS, limit=1, generator=generator(), device=CPU)
        sought = model(torch.from_numpy(prompt)[None])[0, -1].softmax(-1).numpy()
    found = np.bincount([int(row[0]) for row in rows], minlength=VOCAB) / 4000
    assert np.abs(found - sought).max() < 5 * np.sqrt(sought.max() / 4000)


def test_padded_rows_are_never_drawn() -> None:
    model = decoder(spread=0.7)
    narrow = replace(ALWAYS, vocab_len=10)
    rows = sample(model, [np.array([5])] * 200, narrow, limit=4, generator=generator(), device=CPU)
    assert max(int(row.max()) for row in rows) < 10


def test_prompts_are_what_stands_before_the_first_learned_token() -> None:
    ids = np.arange(2, 14)[None]
    targets = np.full((1, 12), -100)
    targets[0, 4:7] = ids[0, 5:8]
    own = ALWAYS.continued(decoder(), Batch(ids, targets), CPU)
    assert own is not None
    assert own.inputs[0, :5].tolist() == [2, 3, 4, 5, 6]
    learned = np.flatnonzero(own.targets[0] >= 0)
    assert learned[0] == 4 and 1 <= len(learned) <= 6 and (np.diff(learned) == 1).all()
    assert (own.targets[0, learned[:-1]] == own.inputs[0, learned[1:]]).all()


def test_packed_documents_become_rows_of_their_own() -> None:
    packed = batch(packed=True, learned=1.0)
    found = list(documents(packed))
    assert [len(ids) for ids, _ in found] == [6, 4] * 3
    own = ALWAYS.continued(decoder(), packed, CPU)
    assert own is not None and len(own.inputs) == 6 and own.segment_ids is None


def test_a_draw_is_a_function_of_seed_batch_and_weights() -> None:
    model, which = decoder(), batch()
    first = ALWAYS.continued(model, which, CPU)
    second = ALWAYS.continued(decoder(), which, CPU)
    assert first is not None and second is not None
    assert (first.inputs == second.inputs).all() and (first.targets == second.targets).all()

    def differs(policy: OnPolicy, student: Decoder, other: Batch) -> bool:
        found = policy.continued(student, other, CPU)
        assert found is not None
        return found.inputs.shape != first.inputs.shape or bool((found.inputs != first.inputs).any())

    assert differs(replace(ALWAYS, seed=4), model, which)
    assert differs(ALWAYS, model, batch(9))
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    assert differs(ALWAYS, model, which)


def test_the_share_is_kept() -> None:
    some = replace(ALWAYS, share=0.3, max_new=1)
    model = decoder()
    count = sum(some.continued(model, batch(seed, rows=1), CPU) is not None for seed in range(200))
    assert 40 <= count <= 80


def test_text_stays_within_the_context() -> None:
    model = decoder(context_len=12)
    long = replace(ALWAYS, max_new=50, end_ids=frozenset())
    own = long.continued(model, batch(rows=2, length=10, learned=1.0), CPU)
    assert own is not None and own.inputs.shape[1] <= 12
    ids = np.arange(2, 15)[None]
    assert long.continued(model, Batch(ids, np.where(np.arange(13) == 12, 5, -100)[None]), CPU) is None


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}, {"max_new": 0}, {"temperature": 0.0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError):
        replace(ALWAYS, **wrong)
