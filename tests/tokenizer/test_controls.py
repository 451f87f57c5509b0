"""No string encodes to a control id, whatever vocabulary it meets; and foreign files are vetted before they run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from smelt.core.errors import CheckpointError, UnsupportedError
from smelt.tokenizer import Tokenizer, train_tokenizer
from smelt.tokenizer.patterns import PATTERNS
from tests.tokenizer.samples import CORPUS, added, sentencepiece_spec, steady, texts, tokenizer_of


def _house_spec() -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(train_tokenizer(CORPUS, 400, pattern="qwen2").json)
    return spec


def _spelled_in_vocabulary() -> dict[str, Any]:
    """Like Gemma's: the base vocabulary holds <start_of_turn>, and here merges even lead to it."""
    return sentencepiece_spec(prefix_space=False, extra=("<start_of_turn>", "<s>>"))


def _whole_words() -> dict[str, Any]:
    """Like Mistral's: a control stands in the vocabulary of a model that takes whole words before any merge."""
    spec = _house_spec()
    vocab = spec["model"]["vocab"]
    vocab["turn"] = len(vocab)
    spec["model"]["ignore_merges"] = True
    spec["added_tokens"] = [added("turn", vocab["turn"])]
    return spec


def _unmarked() -> dict[str, Any]:
    """Like Qwen's: <tool_call> is an added token that is not marked special, beside one that is plain text."""
    spec = _house_spec()
    size = len(spec["model"]["vocab"])
    spec["added_tokens"] = [
        added("<|im_start|>", size),
        added("<tool_call>", size + 1, special=False),
        added("<h1>", size + 2, special=False),
    ]
    return spec


SPECS: dict[str, Callable[[], dict[str, Any]]] = {
    "spelled in vocabulary": _spelled_in_vocabulary,
    "whole words": _whole_words,
    "unmarked": _unmarked,
}


@pytest.mark.parametrize("name", SPECS)
def test_no_text_gives_a_control_id(name: str) -> None:
    tokenizer = tokenizer_of(SPECS[name]())
    controls = set(tokenizer.control_ids.values())
    spellings = tuple(tokenizer.control_ids)
    assert controls

    @steady
    @given(text=texts(spellings))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert not controls & set(ids)
        assert tokenizer.decode(ids) == text.replace("\u2581", " " if name == "spelled in vocabulary" else "\u2581")

    check()
    for spelling in spellings:
        for text in (
            spelling,
            f" {spelling} ",
            spelling * 3,
            f"\n{spelling}\n",
            f" {tokenizer.control_ids[spelling]} {spelling}",
        ):
            assert not controls & set(tokenizer.encode(text)), text


def test_plain_added_tokens_stay_text() -> None:
    tokenizer = tokenizer_of(_unmarked())
    assert set(tokenizer.control_ids) == {"<|im_start|>", "<tool_call>"}
    ids = tokenizer.encode("<h1>x")
    assert [tokenizer.token_bytes(i) for i in ids] == [b"<h1>", b"x"]


def test_masks_see_every_control_as_special() -> None:
    spec = json.loads(tokenizer_of(_unmarked()).json)
    assert {token["content"]: token["special"] for token in spec["added_tokens"]} == {
        "<|im_start|>": True,
        "<tool_call>": True,
        "<h1>": False,
    }


def _change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *way, last = path.split(".")

    def apply(spec: dict[str, Any]) -> None:
        for key in way:
            spec = spec[key]
        spec[last] = value

    return apply


def _split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _two_with_one_id(spec: dict[str, Any]) -> None:
    spec["model"]["vocab"]["b"] = spec["model"]["vocab"]["a"]


def _byte_missing(spec: dict[str, Any]) -> None:
    del spec["model"]["vocab"]["~"]


REFUSED: list[tuple[Callable[[dict[str, Any]], None], type[CheckpointError], str]] = [
    (_change("model.type", "Unigram"), UnsupportedError, "model type 'Unigram'"),
    (_change("model.dropout", 0.5), UnsupportedError, "model.dropout"),
    (_change("model.end_of_word_suffix", "</w>"), UnsupportedError, "end_of_word_suffix"),
    (_change("model.vocab", None), CheckpointError, "sought a model"),
    (_change("model.merges", [["a", "no such token"]]), CheckpointError, "cannot be used"),
    (_change("normalizer", {"type": "Precompiled"}), UnsupportedError, "normalizer 'Precompiled'"),
    (_change("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+"}, "content": ""}), UnsupportedError, "a+"),
    (_change("pre_tokenizer", _split("(a|a)*b")), UnsupportedError, "may never end"),
    (_change("pre_tokenizer", {"type": "Whitespace"}), UnsupportedError, "pre-tokenizer 'Whitespace'"),
    (_change("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}), UnsupportedError, "add_prefix_space"),
    (_change("pre_tokenizer", None), UnsupportedError, "neither byte-level"),
    (_change("pre_tokenizer", {"type": "Split", "behavior": "Removed"}), UnsupportedError, "removes text"),
    (_change("pre_tokenizer", {"type": "Metaspace", "replacement": "_"}), UnsupportedError, "Metaspace with '_'"),
    (_change("pre_tokenizer", ["Split"]), CheckpointError, "with a type"),
    (_change("added_tokens", [added("~", 93)]), UnsupportedError, "spelled like text"),
    (_change("added_tokens", [added("<|x|>", 5)]), CheckpointError, "id that another token has"),
    (_change("added_tokens", [added("<|x|>", 5000)]), CheckpointError, "would load as"),
    (_change("added_tokens", [{"content": "<|x|>", "id": "5"}]), CheckpointError, "a content and an id"),
    (_change("added_tokens", [{"content": "<|x|>"}]), CheckpointError, "a content and an id"),
    (_two_with_one_id, CheckpointError, "share an id"),
    (_byte_missing, CheckpointError, "."),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_what_smelt_does_not_know_is_refused(
    change: Callable[[dict[str, Any]], None], error: type[CheckpointError], message: str
) -> None:
    spec = _house_spec()
    tokenizer_of(spec)
    change(spec)
    with pytest.raises(error, match=message):
        tokenizer_of(spec)


def test_folders_without_a_usable_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"readable tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match="sought an object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json or .* cannot be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if " " not in name])
def test_every_expression_is_linear_on_long_runs(pattern: str) -> None:
    """Ten times the text may take ten times as long, not a hundred: the worst of them, per character."""
    tokenizer = train_tokenizer(CORPUS, 400, pattern=pattern)

    def seconds(unit: str, length: int) -> float:
        text = (unit * length)[:length]
        start = time.process_time()  # not wall time: the machine has other work
        tokenizer.encode(text)
        return time.process_time() - start

    for unit in ("a", "A", "aA", " ", "\n", " \n", "^", "1", "北", "a ", "\u0301", "' ", "/\r"):
        small = min(seconds(unit, 10_000) for _ in range(3))
        assert seconds(unit, 100_000) < max(40 * small, 0.4), unit
