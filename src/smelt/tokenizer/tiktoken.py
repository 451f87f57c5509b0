"""tiktoken's rank files as tokenizers.

A rank file has one line per token: base64 of its bytes, a space, its rank, which is also its id. tiktoken merges
whichever neighbours form the token of lowest rank, and takes a piece that is a token as a whole. Here that
becomes a list of merges: for every token, all ways to cut it in two tokens, in order of its rank.
"""

from __future__ import annotations

import base64
import binascii
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from smelt.core.errors import CheckpointError, UnsupportedError
from smelt.tokenizer.bytelevel import to_chars
from smelt.tokenizer.patterns import NAMES, PATTERNS

_SPECIAL_TOKENS: dict[str, dict[str, int]] = {
    "cl100k_base": {
        "<|endoftext|>": 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
    "o200k_base": {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
}


def read_ranks(path: str | pathlib.Path) -> dict[bytes, int]:
    """Token bytes to rank. Raises CheckpointError with the line that is wrong."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(f"rank file line {number}: sought base64, a space and a number") from error
    return ranks


def tokenizer_json(
    path: str | pathlib.Path,
    name: str | None = None,
    *,
    pattern: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
) -> str:
    """A tokenizer.json for a rank file.

    `name` is cl100k_base or o200k_base (None: the file's own name); it decides the pre-tokenizer expression and the
    special tokens unless they are given. `pattern` is a name in `patterns.PATTERNS` or one of its expressions.
    """
    name = name or pathlib.Path(path).stem
    if pattern is None and name not in _SPECIAL_TOKENS:
        raise UnsupportedError(f"encoding {name!r}; known by name are {sorted(_SPECIAL_TOKENS)}, else give a pattern")
    expression = PATTERNS.get(pattern or name, pattern or "")
    if expression not in NAMES:
        raise UnsupportedError(f"unknown expression; smelt runs only those it knows: {', '.join(sorted(PATTERNS))}")
    specials = dict(_SPECIAL_TOKENS.get(name, {}) if special_tokens is None else special_tokens)
    ranks = read_ranks(path)
    vocab = {to_chars(token): rank for token, rank in ranks.items()}
    if clash := [special for special in specials if special in vocab]:
        raise CheckpointError(f"the rank file already holds the special token {clash[0]!r}")
    # The library numbers added tokens one after another; standing in the vocabulary lets them keep their ids.
    vocab.update(specials)
    return byte_level_json(vocab, _merges(ranks), expression, specials, ignore_merges=True)


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    chars = {token: to_chars(token) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [
            (ranks[token[:i]], ranks[token[i:]], token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        ]
        merges.extend((chars[left], chars[right]) for _, _, left, right in sorted(cuts))
    return merges


def byte_level_json(
    vocab: Mapping[str, int],
    merges: list[tuple[str, str]],
    expression: str,
    specials: Mapping[str, int],
    *,
    ignore_merges: bool = False,
) -> str:
    """A byte-level tokenizer.json from its parts; `specials` in rising order of id."""
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": merges,
    }
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": content, **plain} for content, token_id in specials.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    return json.dumps(spec, ensure_ascii=False)
