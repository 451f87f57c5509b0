"""Pairs the model writes itself: the attack is in the prompt and in no answer's place, and a kill loses nothing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from smelt.chat.house import HouseRenderer
from smelt.core.errors import CheckpointError, DataError
from smelt.core.messages import Message
from smelt.data.attacked import Attacks, with_order
from smelt.data.preference_jsonl import read_preference_jsonl
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer
from smelt.train.align import pairs
from smelt.train.align.pairs import PairProgress, PairSettings, write_pairs
from smelt.train.distill.on_policy import OnPolicy, sample
from tests.tiny import random_tensors, tiny_config, tiny_tokenizer_files

SETTINGS = PairSettings(num_prompts=12, per_batch=4, max_new=12, temperature=1.0)
ATTACKS = Attacks(seed=3, languages=("en",))


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> HouseRenderer:
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, data in tiny_tokenizer_files()[0].items():
        (folder / name).write_bytes(data)
    return HouseRenderer(Tokenizer.load(folder))


class Willing(Decoder):
    """Says one of four letters or stops, whatever it was asked: so that its answers are messages."""

    likely: tuple[int, ...] = ()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Near zero for what it likes to say."""
        wanted = torch.full((self.config.vocab_size,), -1e4)
        wanted[list(self.likely)] = 0.0
        return super().logits(hidden) * 1e-3 + wanted


def willing(renderer: HouseRenderer) -> Decoder:
    _, ids = tiny_tokenizer_files()
    config = tiny_config("gemma3_text", num_layers=1, hidden_size=16, context_len=4096, **ids)
    model = Willing.from_tensors(config, random_tensors(config, 1))
    letters = [i for letter in "abcd" for i in renderer._tokenizer.encode(letter)]
    model.likely = (*letters, renderer.end_id)
    return model


def test_an_attack_changes_the_tool_result_only() -> None:
    for index in range(40):
        one = Attacks(seed=1).at(index)
        assert one == Attacks(seed=1).at(index)
        changed = [(a, b) for a, b in zip(one.clean, one.attacked, strict=True) if a != b]
        assert len(changed) == 1
        before, after = changed[0]
        assert (before.role, before.tool_call_id) == ("tool", after.tool_call_id)
        assert len(after.text) > len(before.text)
        assert one.word in after.text
        assert one.word in one.order[0].text
        assert all(one.word not in message.text for message in one.clean)


def test_orders_stand_at_the_head_at_the_end_and_inside() -> None:
    prompt = (Message.of("user", "?"), Message.of("tool", "one, two", tool_call_id="c"))
    texts = {with_order(prompt, "DO", random.Random(i))[1].text.replace("\n", " ") for i in range(60)}
    assert {"DO one, two", "one, two DO"} < texts
    assert any(text.startswith("one") and text.endswith("two") for text in texts)
    with pytest.raises(DataError, match="a tool's result"):
        with_order(prompt[:1], "DO", random.Random(0))


def test_pairs_are_a_preference_file_of_the_models_own_answers(renderer: HouseRenderer, tmp_path: Path) -> None:
    model = willing(renderer)
    told: list[PairProgress] = []
    num = write_pairs(model, renderer, ATTACKS, SETTINGS, tmp_path / "pairs.jsonl", on_progress=told.append)
    found = read_preference_jsonl(tmp_path / "pairs.jsonl")
    assert len(found) == num > 0
    attacked = {ATTACKS.at(i).attacked for i in range(12)}
    for pair in found:
        assert pair.prompt in attacked
        assert set(pair.chosen.text) <= set("abcd")
        assert pair.chosen != pair.rejected
    assert [now.prompts for now in told] == [4, 8, 12]
    assert told[-1].left_s == 0.0


def test_a_killed_run_goes_on_to_the_same_file(
    renderer: HouseRenderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = willing(renderer), []
    write_pairs(model, renderer, ATTACKS, SETTINGS, tmp_path / "whole.jsonl")
    original = pairs.answered

    def dying(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pairs, "answered", dying)
    with pytest.raises(KeyboardInterrupt):
        write_pairs(model, renderer, ATTACKS, SETTINGS, tmp_path / "pieces.jsonl")
    write_pairs(model, renderer, ATTACKS, SETTINGS, tmp_path / "pieces.jsonl")
    assert len(calls) == 4
    assert (tmp_path / "pieces.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    other = PairSettings(num_prompts=12, per_batch=4, max_new=12, seed=9)
    with pytest.raises(CheckpointError, match="other settings"):
        write_pairs(model, renderer, ATTACKS, other, tmp_path / "pieces.jsonl")


def test_drawing_with_privileges_in_company_equals_drawing_alone(renderer: HouseRenderer) -> None:
    config = tiny_config("gemma3_text", num_layers=2, num_privileges=6, tie_embeddings=False)
    model = Decoder.from_tensors(config, random_tensors(config, 2)).eval()
    how = OnPolicy(max_new=6, temperature=0.01, vocab_len=96)
    prompts = [np.array([3, 5, 7, 9]), np.array([4, 8])]
    said = [np.array([0, 2, 5, 3], np.uint8), np.array([2, 3], np.uint8)]

    def drawn(rows: list[int]) -> list[list[int]]:
        with torch.no_grad():
            found = sample(
                model,
                [prompts[i] for i in rows],
                how,
                limit=6,
                generator=torch.Generator().manual_seed(0),
                device=torch.device("cpu"),
                privileges=[said[i] for i in rows],
            )
        return [row.tolist() for row in found]

    assert drawn([0, 1]) == [*drawn([0]), *drawn([1])]
    before = drawn([0])
    said[0] = np.array([5, 5, 0, 3], np.uint8)
    assert drawn([0]) != before
