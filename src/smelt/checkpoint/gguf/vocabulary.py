"""A vocabulary as a GGUF file holds it: plain arrays, by whoever knows the tokenizer (compress/export)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TokenKind = Literal["normal", "unknown", "control", "user_defined", "unused", "byte"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """One text and one kind per id, as many as the model has rows.

    model: "gpt2" (byte-level, with merges) or "llama" (spaces as U+2581, with scores: the highest merges first).
    pre: the name of the expression that cuts a text before the merges; gpt2 only.
    special_ids: bos, eos, eot, unk and pad, those there are, by these names. chat_template: Jinja, or empty.
    """

    model: Literal["gpt2", "llama"]
    tokens: tuple[str, ...]
    kinds: tuple[TokenKind, ...]
    pre: str = ""
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    special_ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_space_prefix: bool = False
    chat_template: str = ""
