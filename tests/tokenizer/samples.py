"""Small vocabularies and texts that the tokenizer's and the chat formats' tests share."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from smelt.chat.house import HOUSE_CONTROLS
from smelt.tokenizer import Tokenizer, train_tokenizer

# No time limit an example: the machine that runs the tests may have other work.
steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CORPUS = [
    "What's the weather in Berlin today? I'd like a table for 4 people at 19:30, please.",
    "Bitte stornieren Sie die Bestellung Nr. 40213 von Frau Schäfer aus Köln; die Größe passt nicht.",
    "我想订两张去北京的火车票,明天早上八点出发。请问多少钱?",
    '{"name": "get_weather", "arguments": {"city": "Berlin", "unit": "c", "days": 3}}',
    "def area(width: float, height: float) -> float:\n    return width * height\n\n\nprint(area(3, 4))\n",
    "user\nassistant\nsystem\n\n<tool_call>\n<tool_response> system user assistant model ipython",
] * 3

FOREIGN_CONTROLS = {
    "chatml": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
    + ("<tool_response>", "</tool_response>", "<think>", "</think>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
}


@functools.cache
def house_tokenizer() -> Tokenizer:
    return train_tokenizer(CORPUS, 800, controls=HOUSE_CONTROLS)


@functools.cache
def foreign_tokenizer(name: str) -> Tokenizer:
    """A byte-level vocabulary with the control tokens of a foreign format."""
    pattern = "cl100k_base" if name == "llama3" else "qwen2"
    return train_tokenizer(CORPUS, 700, controls=FOREIGN_CONTROLS[name], pattern=pattern)


def sentencepiece_spec(*, prefix_space: bool = True, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """A tokenizer.json in the manner of Llama 2 (`prefix_space`) or Gemma: byte fallback, spaces as U+2581."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for token in [*extra, *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581helowrdBin\n<>|_startofu"]:
        vocab.setdefault(token, len(vocab))
    merges: list[list[str]] = []
    pairs = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("\u2581", "hello"), ("\u2581", "w"), ("\n", "\n")]
    for left, right in pairs:
        vocab.setdefault(left + right, len(vocab))
        merges.append([left, right])
    for token in extra:  # every control is reachable by merges, left to right: the worst case
        for end in range(2, len(token) + 1):
            vocab.setdefault(token[:end], len(vocab))
            merges.append([token[: end - 1], token[end - 1]])
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix_space:
        normalizers.insert(0, {"type": "Prepend", "prepend": "\u2581"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(token, vocab[token]) for token in ("<unk>", "<s>", "</s>", *extra)],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def added(content: str, token_id: int, *, special: bool = True) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, "special": special, **flags}


def tokenizer_of(spec: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_json(json.dumps(spec))


def texts(spellings: tuple[str, ...] = HOUSE_CONTROLS) -> st.SearchStrategy[str]:
    """Any Unicode text, with control spellings, their halves and words of the corpus mixed in."""
    halves = [half for spelling in spellings for half in (spelling[:-1], spelling[1:], spelling[2:])]
    words = st.sampled_from([*spellings, *halves, " ", "\n", "\u2581", "<0x0A>", '{"name": "', "Berlin", "北京", "42"])
    return st.lists(words | st.text(max_size=12), max_size=6).map("".join)


_POOLS = (
    "abcdefghijklmnopqrstuvwxyz ",
    "ABC abc 0123456789 .,!?'\"-_/\\(){}[]<>|`~@#$%^&*+=;:",
    "\n\r\t \u3000\xa0\u2028\x0b\x0c",
    "äöüßÄÖÜéèñçøåłžș ",
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说",
    "あいうえおかきくけこアイウエオ漢字カタカナー々",
    "한국어텍스트가나다라 ",
    "Привет мир ёЁ",
    "مرحبا بالعالم العربية ًٌٍ",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀😁🤣❤\ufe0f👨\u200d👩\u200d👧🇩🇪👍🏽",
    "'s't're'VE'm'LL'd'ſ'S don't I'M we'll",
)


def random_texts(count: int, seed: int) -> list[str]:
    """Random code points, one script at a time, runs of one character, and scripts mixed."""
    rng = random.Random(seed)

    def character(limit: int) -> str:
        while 0xD800 <= (code := rng.randrange(limit)) < 0xE000:
            pass
        return chr(code)

    def drawn(pool: str, length: int) -> str:
        return "".join(rng.choice(pool) for _ in range(length))

    def one() -> str:
        kind, length = rng.randrange(6), rng.randrange(60)
        if kind == 0:
            return "".join(character(0x110000) for _ in range(length))
        if kind == 1:
            return "".join(character(0x3000) for _ in range(length))
        if kind == 2:
            return rng.choice(rng.choice(_POOLS)) * length + drawn(_POOLS[2], rng.randrange(4))
        if kind == 3:
            return drawn(rng.choice(_POOLS), length)
        return "".join(drawn(pool, rng.randrange(1, 8)) for pool in rng.choices(_POOLS, k=rng.randrange(1, 9)))

    return [one() for _ in range(count)]
