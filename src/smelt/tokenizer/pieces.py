"""What each token id writes: the table behind decoding, and the incremental decoder."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any

from smelt.core.errors import CheckpointError
from smelt.tokenizer.bytelevel import to_bytes
from smelt.tokenizer.vetting import Kind, decoder_steps, pre_tokenizer_steps, steps

_BYTE = re.compile(r"<0x([0-9A-F]{2})>\Z")


def piece_table(spec: Mapping[str, Any], kind: Kind, controls: Mapping[str, int]) -> list[bytes]:
    """Bytes of every id from 0 to the largest; empty for control ids and for ids that stand for nothing.

    Raises CheckpointError when an added token's id collides with another token's.
    """
    vocab: Mapping[str, int] = spec["model"]["vocab"]
    added = {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
    taken = set(vocab.values())
    for content, token_id in added.items():
        if token_id != vocab.get(content) and (content in vocab or token_id in taken):
            raise CheckpointError(f"tokenizer.json: added token {content!r} has an id that another token has")
        taken.add(token_id)
    table = [b""] * (max(taken) + 1)
    for token, token_id in vocab.items():
        table[token_id] = _vocabulary_bytes(token, kind)
    for content, token_id in added.items():
        table[token_id] = _added_bytes(content, kind)
    for token_id in controls.values():
        table[token_id] = b""
    return table


def _vocabulary_bytes(token: str, kind: Kind) -> bytes:
    if kind == "byte-level":
        data = to_bytes(token)
        return token.encode() if data is None else data
    if byte := _BYTE.match(token):
        return bytes([int(byte[1], 16)])
    return token.replace("\u2581", " ").encode()


def _added_bytes(content: str, kind: Kind) -> bytes:
    # Added tokens are matched in the text itself, but SentencePiece's own spelling of a space stays in them.
    return content.encode() if kind == "byte-level" else content.replace("\u2581", " ").encode()


def adds_leading_space(spec: Mapping[str, Any]) -> bool:
    """Whether encoding puts one space before a text, which decoding takes away again (SentencePiece's habit)."""
    strips = any(step["type"] == "Strip" and step.get("start") for step in decoder_steps(spec))
    metaspace = any(
        step["type"] == "Metaspace"
        and step.get("prepend_scheme", "always") != "never"
        and step.get("add_prefix_space", True)
        for step in pre_tokenizer_steps(spec)
    )
    prepends = any(step["type"] == "Prepend" for step in steps(spec.get("normalizer"), "normalizers"))
    return strips or metaspace or prepends


class StreamDecoder:
    """Decodes one token at a time and emits complete UTF-8 only.

    All feeds and the flush joined equal `Tokenizer.decode` of the same ids.
    """

    def __init__(self, table: Sequence[bytes], strip_space: bool) -> None:
        self._table = table
        self._strip_space = strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Text that became complete with this token; empty for a control id."""
        data = self._table[token_id] if 0 <= token_id < len(self._table) else b""
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What an unfinished character left behind, as U+FFFD; the decoder is then as new."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
