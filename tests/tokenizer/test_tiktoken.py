"""OpenAI's vocabularies: the same ids as tiktoken itself, built offline from the same rank files."""

from __future__ import annotations

import base64
import functools
from pathlib import Path

import pytest
import tiktoken
from tiktoken_ext import openai_public

from smelt.core.errors import CheckpointError, UnsupportedError
from smelt.tokenizer import Tokenizer
from smelt.tokenizer.counting import count_chat
from tests.conftest import SHARED
from tests.tokenizer.samples import random_texts

ENCODINGS = ("cl100k_base", "o200k_base")


def _rank_file(name: str) -> Path:
    path = SHARED / "data" / "vocab" / f"{name}.tiktoken"
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/vocab/{name}.tiktoken")
    return path


@functools.cache
def _ours(name: str) -> Tokenizer:
    return Tokenizer.from_tiktoken(_rank_file(name))


@functools.cache
def _theirs(name: str) -> tiktoken.Encoding:
    """tiktoken's own definition of the encoding, its download replaced by the local file."""
    lines = _rank_file(name).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **kwargs: ranks)
        return tiktoken.Encoding(**getattr(openai_public, name)())


@pytest.mark.parametrize("name", ENCODINGS)
def test_same_ids_as_tiktoken(name: str) -> None:
    texts = random_texts(10_000, seed=20240718)
    ours, theirs = _ours(name), _theirs(name)
    got = ours.encode_batch(texts)
    wrong = [t for t, a, b in zip(texts, got, theirs.encode_ordinary_batch(texts), strict=True) if a != b]
    assert wrong == []
    assert all(ours.decode(ids) == text for ids, text in zip(got, texts, strict=True))


@pytest.mark.parametrize("name", ENCODINGS)
def test_special_tokens_have_their_ids_and_no_text_gives_them(name: str) -> None:
    ours, theirs = _ours(name), _theirs(name)
    assert dict(ours.control_ids) == theirs._special_tokens
    assert ours.vocab_size == theirs.n_vocab
    for spelling in ours.control_ids:
        assert ours.encode(f"a {spelling}b") == theirs.encode_ordinary(f"a {spelling}b")


def test_chat_count_is_what_the_api_reported() -> None:
    """The two requests of OpenAI's cookbook; it prints 124 and 101 as counted by the API for gpt-4o-mini."""
    example = [
        ("system", None, "You are a helpful, pattern-following assistant that translates corporate jargon into plain "
         "English."),
        ("system", "example_user", "New synergies will help drive top-line growth."),
        ("system", "example_assistant", "Things working well together will increase revenue."),
        ("system", "example_user", "Let's circle back when we have more bandwidth to touch base on opportunities for "
         "increased leverage."),
        ("system", "example_assistant", "Let's talk later when we're less busy about how to do better."),
        ("user", None, "This late pivot means we don't have time to boil the ocean for the client deliverable."),
    ]  # fmt: skip
    jargon = [{"role": r, "content": c} | ({"name": n} if n else {}) for r, n, c in example]
    count = count_chat(_ours("o200k_base"), jargon)
    assert (count.total, count.exact) == (124, True)

    fields = {
        "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
        "unit": {
            "type": "string",
            "description": "The unit of temperature to return",
            "enum": ["celsius", "fahrenheit"],
        },
    }
    function = {
        "name": "get_current_weather",
        "description": "Get the current weather in a given location",
        "parameters": {"type": "object", "properties": fields, "required": ["location"]},
    }
    weather = [
        {
            "role": "system",
            "content": "You are a helpful assistant that can answer to questions about the weather.",
        },
        {"role": "user", "content": "What's the weather like in San Francisco?"},
    ]
    count = count_chat(_ours("o200k_base"), weather, [{"type": "function", "function": function}])
    assert (count.total, count.exact) == (101, True)


def test_a_small_rank_file_merges_by_rank(tmp_path: Path) -> None:
    """Ranks decide, not the place in the text; a piece that is a token is taken whole, merges or not."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"bc", b"ab", b"xyz"]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    path = tmp_path / "small.tiktoken"
    path.write_bytes(b"\n".join(lines))
    tokenizer = Tokenizer.from_tiktoken(path, pattern="gpt2", special_tokens={"<|stop|>": 300})
    assert tokenizer.encode("abcab") == [ord("a"), 256, 257]
    assert tokenizer.encode("xyz") == [258]
    assert tokenizer.encode("xyzx") == list(b"xyzx")
    assert (tokenizer.vocab_size, dict(tokenizer.control_ids)) == (301, {"<|stop|>": 300})
    with pytest.raises(UnsupportedError, match="known by name are"):
        Tokenizer.from_tiktoken(path)
    with pytest.raises(UnsupportedError, match="only those it knows"):
        Tokenizer.from_tiktoken(path, pattern="(a+)+$")
    path.write_bytes(b"YQ== 0\nnot-a-line\n")
    with pytest.raises(CheckpointError, match="line 2"):
        Tokenizer.from_tiktoken(path, pattern="gpt2")
