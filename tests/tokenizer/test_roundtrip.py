"""Text to ids and back: exact for every text, the same in one piece and token by token, equal to a naive BPE."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from smelt.core.errors import InvalidRequestError
from smelt.tokenizer import Tokenizer, train_tokenizer
from smelt.tokenizer.bytelevel import to_chars
from smelt.tokenizer.patterns import PATTERNS
from tests.tokenizer.samples import CORPUS, house_tokenizer, sentencepiece_spec, steady, texts, tokenizer_of

TOKENIZERS = {
    "house": house_tokenizer(),
    "llama2": tokenizer_of(sentencepiece_spec()),
    "gemma": tokenizer_of(sentencepiece_spec(prefix_space=False, extra=("<start_of_turn>",))),
}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


@every_tokenizer
@steady
@given(text=texts(("<|end|>", "<start_of_turn>", "<s>")))
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    if tokenizer is not TOKENIZERS["house"]:
        text = text.replace("\u2581", "_")  # SentencePiece's sign for a space is a space after the round trip
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert not set(ids) & set(tokenizer.control_ids.values())


@every_tokenizer
@steady
@given(data=st.data())
def test_stream_equals_decode_for_any_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Ids that no text gives included: broken UTF-8, control ids, ids past the vocabulary."""
    ids = data.draw(st.lists(st.integers(-1, tokenizer.vocab_size + 2), max_size=40))
    stream = tokenizer.stream()
    pieces = [stream.feed(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


@steady
@given(text=st.text(min_size=1, max_size=8))
def test_stream_never_emits_half_a_character(text: str) -> None:
    """Byte by byte, a text's characters appear exactly when their last byte does."""
    tokenizer = house_tokenizer()
    byte_ids = {tokenizer.token_bytes(i): i for i in range(256)}
    stream = tokenizer.stream()
    for char in text:
        *first, last = char.encode()
        assert all(stream.feed(byte_ids[bytes([byte])]) == "" for byte in first)
        assert stream.feed(byte_ids[bytes([last])]) == char
    assert stream.flush() == ""


def _naive_encode(tokenizer: Tokenizer, pattern: str, text: str) -> list[int]:
    """BPE as its paper tells it: cut, spell in bytes, then merge the earliest-learnt pair until none is left."""
    model = json.loads(tokenizer.json)["model"]
    rank = {tuple(pair): index for index, pair in enumerate(model["merges"])}
    ids: list[int] = []
    for piece in regex.findall(pattern, text, flags=regex.V1):
        symbols = list(to_chars(piece.encode()))
        while pairs := [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in rank]:
            best = min(pairs, key=rank.__getitem__)
            at = next(i for i, pair in enumerate(zip(symbols, symbols[1:], strict=False)) if pair == best)
            symbols[at : at + 2] = ["".join(best)]
        ids += [model["vocab"][symbol] for symbol in symbols]
    return ids


def _settled(text: str) -> bool:
    # Older than the tables of both expression libraries, so that they agree on what is a letter.
    return all(ord(char) < 0x10000 and unicodedata.category(char) != "Cn" for char in text)


@pytest.mark.parametrize("pattern", ["house", "copying", "qwen2", "o200k_base"])
def test_encode_equals_a_naive_bpe(pattern: str) -> None:
    tokenizer = train_tokenizer(CORPUS, 600, pattern=pattern)

    @steady
    @given(text=texts().filter(_settled))
    def check(text: str) -> None:
        assert tokenizer.encode(text) == _naive_encode(tokenizer, PATTERNS[pattern], text)

    check()


@pytest.mark.parametrize("pattern", ["house", "copying"])
def test_names_and_numbers_are_the_same_ids_in_a_sentence_and_in_json(pattern: str) -> None:
    corpus = ["Fly from Berlin to Oslo on 24.12.2025, Schäfer said. 我去北京", "Order espresso, the order is due"] * 5
    tokenizer = train_tokenizer(corpus, 400, pattern=pattern)
    # Han characters one by one in "house", lower-case words alone in "copying".
    for copied in ("Berlin", "Schäfer", "2025", "AB-1234", {"house": "北京", "copying": "espresso"}[pattern]):
        inside = tokenizer.encode(copied)
        for around in (f"the {copied} flight", f'{{"city":"{copied}"}}', f"去{copied}。"):
            ids = tokenizer.encode(around)
            assert any(ids[i : i + len(inside)] == inside for i in range(len(ids))), (copied, around)


def test_lone_surrogates_are_refused_and_bytes_survive() -> None:
    tokenizer = house_tokenizer()
    with pytest.raises(InvalidRequestError, match="U\\+D800 at character 3"):
        tokenizer.encode("abc\ud800")
    with pytest.raises(InvalidRequestError, match="U\\+DFFF"):
        tokenizer.encode_batch(["fine", "\udfff"])
    with pytest.raises(TypeError, match="sought a string, found int"):
        tokenizer.encode(7)  # type: ignore[arg-type]
    assert {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)} >= {bytes([b]) for b in range(256)}
    assert tokenizer.encode_batch(["Berlin", ""]) == [tokenizer.encode("Berlin"), []]


def test_sentencepiece_pieces_write_their_bytes() -> None:
    tokenizer = TOKENIZERS["llama2"]
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("hello w\t")] == [b" hello", b" w", b"\t"]
    newline = json.loads(tokenizer.json)["model"]["vocab"]["<0x0A>"]
    assert tokenizer.token_bytes(newline) == b"\n"
    stream = tokenizer.stream()
    assert [stream.feed(i) for i in tokenizer.encode("hello hello")] == ["hello", " hello"]


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    tokenizer = house_tokenizer()
    tokenizer.save(tmp_path, {"bos_token": "<|bos|>", "add_bos_token": True})
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert loaded.control_ids == tokenizer.control_ids
    assert loaded.bos_id == tokenizer.control_ids["<|bos|>"]
    assert tokenizer.bos_id is None
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert Tokenizer.load(tmp_path / "again").config == loaded.config
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    assert Tokenizer.load(tmp_path).config["chat_template"] == "{{ x }}"


def test_bos_is_what_the_folder_says() -> None:
    spec = sentencepiece_spec()
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    assert Tokenizer(json.dumps(spec)).bos_id == 1
    assert Tokenizer(json.dumps(spec), {"add_bos_token": False}).bos_id is None
    assert Tokenizer(json.dumps(spec), {"add_bos_token": True, "bos_token": {"content": "</s>"}}).bos_id == 2
    assert TOKENIZERS["llama2"].bos_id is None


def test_bos_stands_behind_another_processor_too() -> None:
    """Llama 3's folders say nothing of add_bos_token and wrap the template in a Sequence, behind ByteLevel's step.

    Only a template on its own was looked at, so raw completions of every Llama 3 model began without
    <|begin_of_text|>, and its scores were not the ones others measure.
    """
    spec = sentencepiece_spec()
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}
    step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    spec["post_processor"] = {"type": "Sequence", "processors": [step, template]}
    assert Tokenizer(json.dumps(spec)).bos_id == 1
    assert Tokenizer(json.dumps(spec), {"add_bos_token": False}).bos_id is None


def test_training_is_repeatable_and_holds_its_size() -> None:
    first, second = (train_tokenizer(iter(CORPUS), 450, controls=["<|a|>", "<|b|>"]) for _ in range(2))
    assert first.json == second.json
    assert first.vocab_size == 450
    assert dict(first.control_ids) == {"<|a|>": 448, "<|b|>": 449}
    with pytest.raises(InvalidRequestError, match="too small"):
        train_tokenizer(CORPUS, 200)
    with pytest.raises(InvalidRequestError, match="distinct"):
        train_tokenizer(CORPUS, 500, controls=["<|a|>", "<|a|>"])
    with pytest.raises(InvalidRequestError, match="pattern 'x'"):
        train_tokenizer(CORPUS, 500, pattern="x")
