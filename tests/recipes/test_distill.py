"""The distillation recipe in seconds: from a recorded file to a folder that opens, resumed on the way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.distill import DistillConfig, make, recipe
from smelt.checkpoint import open_checkpoint
from smelt.core.errors import DataError, UnsupportedError
from smelt.tokenizer import Tokenizer
from smelt.train.lineage import broken_at
from smelt.train.recipe import Workshop
from tests.tiny import make_tiny_folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Sixty recorded conversations, one of them cut off, one broken."""
    path = tmp_path / "chats.jsonl"
    cities = "Berlin Paris Rome Bern Oslo Wien".split()
    lines: list[dict[str, Any]] = []
    for i in range(60):
        city = cities[i % 6]
        messages = [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "content": f"The weather in {city} is fine today."},
        ]
        lines.append({"messages": messages, "metadata": {"finish_reason": "length" if i == 7 else "stop"}})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n{\n")
    return path


def settings(chats: Path, student: Path, **changes: Any) -> DistillConfig:
    small = {"total_steps": 12, "row_len": 128, "rows": 2, "adam_lr": 1e-2, "muon_lr": 1e-2}
    return DistillConfig(chats=(chats,), student=str(student), **(small | changes))


def shop(out: Path) -> tuple[Workshop, list[str]]:
    said: list[str] = []
    return Workshop(out=out, on_report=lambda _: None, say=said.append), said


def test_fine_tuning_on_a_recorded_file_learns_and_resumes(chats: Path, tiny_folder: Path, tmp_path: Path) -> None:
    first, said = shop(tmp_path / "a")
    folder = make(settings(chats, tiny_folder), first)
    assert any("58" in line or "59" in line for line in said if "used" in line)
    assert any("line 8, metadata.finish_reason" in line for line in said)
    lineage = json.loads((folder / "lineage.json").read_text())["chain"]
    (made,) = [entry for entry in lineage if entry["step"] in ("distil", "tune")]
    assert broken_at(lineage) is None and made["held_out_nats_after"] < made["held_out_nats_before"]
    assert open_checkpoint(folder).config == open_checkpoint(tiny_folder).config
    assert str(tmp_path) not in (folder / "lineage.json").read_text()
    before = (folder / "model.safetensors").read_bytes()
    assert make(settings(chats, tiny_folder), first) == folder
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "changes", [{"cache": "sampled"}, {"cache": "top_k", "cache_k": 4}, {"on_policy": 0.5, "beta": 0.5}]
)
def test_a_teacher_folder_is_learned_from(
    chats: Path, tiny_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    teacher = make_tiny_folder(tmp_path / "teacher", seed=9, hidden_size=64, embedding_scale=8.0)
    given = settings(chats, tiny_folder, teacher=str(teacher), total_steps=3, max_new=4, **changes)
    place, said = shop(tmp_path / "out")
    folder = make(given, place)
    assert open_checkpoint(folder).fingerprint != open_checkpoint(tiny_folder).fingerprint
    assert any("teacher cache" in line for line in said) == ("cache" in changes)


def test_a_teacher_of_another_vocabulary_is_refused(chats: Path, tiny_folder: Path, tmp_path: Path) -> None:
    given = settings(chats, tiny_folder, teacher="spark")
    with pytest.raises(UnsupportedError, match="different vocabularies"):
        make(given, shop(tmp_path / "out")[0])
    broken = dataclasses.replace(given, teacher="", skip_problems=False)
    with pytest.raises(DataError, match="line 8, metadata.finish_reason"):
        make(broken, shop(tmp_path / "other")[0])


def test_log_probabilities_in_the_file_are_learned_from(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_folder)
    ids = tokenizer.encode("Fine.")

    def told(i: int, logprob: float) -> dict[str, Any]:
        return {"token": tokenizer.decode([i]), "bytes": list(tokenizer.token_bytes(i)), "logprob": logprob}

    content = [{**told(i, -0.1), "top_logprobs": [told(i, -0.1), told(i + 1, -3.0)]} for i in ids]
    messages = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Fine."}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": messages, "metadata": {"logprobs": {"content": content}}}) + "\n")
    place, said = shop(tmp_path / "out")
    folder = make(settings(path, tiny_folder, cache="recorded", cache_k=4, total_steps=4), place)
    lineage = json.loads((folder / "lineage.json").read_text())["chain"]
    (made,) = [entry for entry in lineage if entry["step"] in ("distil", "tune")]
    assert made["held_out_nats_after"] < made["held_out_nats_before"]
    assert any("teacher cache" in line for line in said)
    path.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(DataError, match="found none"):
        make(settings(path, tiny_folder, cache="recorded"), shop(tmp_path / "other")[0])


def test_a_url_is_asked_once_and_says_what_it_cost(live_url: str, served_folder: Path, tmp_path: Path) -> None:
    """Plain texts: our server takes no control tokens in prompts, so conversations need a folder or chat logprobs."""
    path = tmp_path / "texts.jsonl"
    path.write_text(
        json.dumps({"prompt": "The weather", "completion": " is fine.", "metadata": {"finish_reason": "length"}}) + "\n"
    )
    given = settings(
        path, served_folder, teacher=f"{live_url}/v1", teacher_model="gpt-4o-mini", cache_k=5, total_steps=1
    )
    given = dataclasses.replace(given, input_price=1.0, row_len=16, rows=1)
    place, said = shop(tmp_path / "out")
    make(given, place)
    assert any("teacher: " in line and "cost 0.00" in line for line in said)
    make(given, place)
    assert sum("teacher: " in line for line in said) == 1  # the second call found all answers there


@pytest.mark.slow
def test_the_smoke_run_is_whole(tmp_path: Path) -> None:
    place, said = shop(tmp_path / "out")
    assert open_checkpoint(recipe.make(recipe.smoke, place)).config.vocab_size > 1000
    assert said
