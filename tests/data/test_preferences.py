"""Pairs: one row for all documents, only answers learned, and a file format checked line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smelt.chat.house import HouseRenderer
from smelt.core.errors import DataError
from smelt.core.messages import Message, Tool
from smelt.data.batches import Encoded
from smelt.data.example import call_message
from smelt.data.preference_jsonl import preference_line, read_preference_jsonl
from smelt.data.preferences import (
    EncodedPair,
    PairStream,
    Preference,
    collate_pairs,
    cut_pair,
    encode_pair,
    pairs_digest,
)
from smelt.tokenizer import Tokenizer
from tests.tiny import tiny_tokenizer_files

PROMPT = (Message.of("system", "Be brief."), Message.of("user", "Hi"), Message.of("assistant", "Yes?"))
PREFERENCE = Preference(
    prompt=(*PROMPT, Message.of("user", "Weather in Paris?")),
    chosen=call_message("weather", '{"city":"Paris"}'),
    rejected=Message.of("assistant", "No idea."),
    tools=(Tool(name="weather", description="d", parameters={"type": "object"}),),
)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> HouseRenderer:
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, data in tiny_tokenizer_files()[0].items():
        (folder / name).write_bytes(data)
    return HouseRenderer(Tokenizer.load(folder))


def test_only_the_last_answer_is_learned_and_ends_with_its_end(renderer: HouseRenderer) -> None:
    pair = encode_pair(renderer, PREFERENCE)
    prompt = renderer.render(PREFERENCE.prompt, tools=PREFERENCE.tools, open_turn=True).ids
    for encoded in (pair.chosen, pair.rejected):
        assert encoded.ids[: len(prompt)] == prompt
        assert not any(encoded.loss_mask[: len(prompt)])
    learned = [i for i, bit in zip(pair.rejected.ids, pair.rejected.loss_mask, strict=True) if bit]
    assert learned[-1] == renderer.end_id
    assert len(learned) == len(pair.rejected.ids) - len(prompt)


def test_pairs_in_one_row(renderer: HouseRenderer) -> None:
    pair = encode_pair(renderer, PREFERENCE)
    other = EncodedPair(pair.rejected, pair.chosen)
    references = np.array([[-1.0, -2.0], [-3.0, -4.0]])
    batch = collate_pairs([pair, other], 0, references)
    assert batch.num_pairs == 2
    assert batch.inputs.shape[0] == 1
    assert batch.inputs.shape[1] % 64 == 0
    assert batch.segment_ids is not None
    assert batch.privileges is not None
    documents = [pair.chosen, pair.rejected, pair.rejected, pair.chosen]
    for number, document in enumerate(documents):
        inside = batch.segment_ids[0] == number
        assert batch.inputs[0, inside].tolist() == document.ids[:-1]
        assert batch.privileges[0, inside].tobytes() == document.privileges[:-1]
        assert (batch.targets[0, inside] >= 0).sum() == sum(document.loss_mask)


def test_an_epoch_has_every_pair_once_with_its_own_references(renderer: HouseRenderer) -> None:
    pairs = [EncodedPair(Encoded([i, 1], b"\0\1", b""), Encoded([i, 2], b"\0\1", b"")) for i in range(7)]
    references = np.arange(14.0).reshape(7, 2)
    stream = PairStream(pairs=pairs, references=references, pad_id=0, pairs_per_batch=3, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        batches = stream.chunk(epoch)
        assert [batch.num_pairs for batch in batches] == [3, 3, 1]
        firsts = [int(i) for batch in batches for i in batch.inputs[0, : 2 * batch.num_pairs : 2]]
        told = np.concatenate([batch.references for batch in batches if batch.references is not None])
        assert np.array_equal(told, references[firsts])
        assert sorted(firsts) == list(range(7))
        orders.append(firsts)
    assert orders[0] == orders[2] != orders[1]


def test_long_pairs_are_cut_from_the_end_or_left_out() -> None:
    pair = EncodedPair(Encoded([1, 2, 3, 4], b"\0\0\1\1", b"2233"), Encoded([1, 2, 5], b"\0\0\1", b"223"))
    cut = cut_pair(pair, 3)
    assert cut == EncodedPair(Encoded([1, 2, 3], b"\0\0\1", b"223"), pair.rejected)
    assert cut_pair(pair, 2) is None
    same = EncodedPair(pair.chosen, Encoded([1, 2, 3, 9], b"\0\0\1\1", b"2233"))
    assert cut_pair(same, 3) is None


def test_the_digest_sees_ids_masks_privileges_and_order() -> None:
    one = EncodedPair(Encoded([1, 2], b"\0\1", b"23"), Encoded([1, 3], b"\0\1", b"23"))
    two = EncodedPair(one.rejected, one.chosen)
    masked = EncodedPair(Encoded([1, 2], b"\1\1", b"23"), one.rejected)
    said = EncodedPair(Encoded([1, 2], b"\0\1", b"33"), one.rejected)
    digests = {pairs_digest(pairs) for pairs in ([one], [two], [masked], [said], [one, two], [two, one])}
    assert len(digests) == 6


def write(path: Path, *values: Any) -> Path:
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values))
    return path


def pair_body(**changes: Any) -> dict[str, Any]:
    body = {
        "input": {"messages": [{"role": "user", "content": "Hi"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "Hello!"}],
        "non_preferred_output": [{"role": "assistant", "content": "What?"}],
    }
    return {key: value for key, value in (body | changes).items() if value is not None}


def test_both_spellings_of_the_format_are_read(tmp_path: Path) -> None:
    outputs = {"preferred_output": None, "non_preferred_output": None}
    other = pair_body(
        **outputs,
        preferred_completion={"role": "assistant", "content": "Hello!"},
        non_preferred_completion=[{"role": "assistant", "content": "What?"}],
    )
    first, second = read_preference_jsonl(write(tmp_path / "f.jsonl", pair_body(), "", other))
    assert first == second
    assert first.prompt == (Message.of("user", "Hi"),)
    assert (first.chosen.text, first.rejected.text) == ("Hello!", "What?")


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    answered = Preference(
        prompt=(
            *PREFERENCE.prompt,
            PREFERENCE.chosen,
            Message.of("tool", "sunny", tool_call_id="call_0"),
        ),
        chosen=Message.of("assistant", "Sunny."),
        rejected=Message.of("assistant", "Rain."),
    )
    for preference in (PREFERENCE, answered):
        (found,) = read_preference_jsonl(write(tmp_path / "f.jsonl", preference_line(preference)))
        assert found == preference


WRONG: dict[str, tuple[Any, str]] = {
    "no input": ({"messages": []}, "line 1, input: sought an object"),
    "a missing side": (pair_body(non_preferred_output=None), "line 1, non_preferred_output: sought one of"),
    "two names for one side": (
        pair_body(preferred_completion=[{"role": "assistant", "content": "x"}]),
        "line 1, preferred_output: sought one of .* found 2",
    ),
    "two answers": (
        pair_body(preferred_output=[{"role": "assistant", "content": "x"}] * 2),
        "line 1, preferred_output: sought one assistant message",
    ),
    "a user's answer": (
        pair_body(preferred_output=[{"role": "user", "content": "x"}]),
        "line 1, preferred_output: sought one assistant message",
    ),
    "the same twice": (
        pair_body(non_preferred_output=[{"role": "assistant", "content": "Hello!"}]),
        "line 1, non_preferred_output: the same",
    ),
    "a wrong message": (
        pair_body(input={"messages": [{"role": "king", "content": "x"}]}),
        r"line 1, input.messages\[0\].role",
    ),
    "a wrong answer": (
        pair_body(preferred_output=[{"role": "assistant", "content": 5}]),
        "line 1, preferred_output.content",
    ),
    "an unknown field": (pair_body(score=1), "line 1, score: unknown field"),
    "no JSON": ("{", "line 1: not JSON"),
    "nothing": ("", "found none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_lines_are_named(tmp_path: Path, name: str) -> None:
    value, message = WRONG[name]
    with pytest.raises(DataError, match=message):
        read_preference_jsonl(write(tmp_path / "f.jsonl", value))
