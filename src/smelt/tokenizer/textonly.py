"""From a tokenizer.json to one that encodes text and nothing but text.

Why no string can yield a control id afterwards. BPE emits four things: added tokens found in the text,
single characters (or bytes) of the vocabulary, results of merges and, with `ignore_merges`, whole words.
Control tokens are marked special, which `encode_special_tokens` leaves unmatched; a control spelled by one
character or like a byte is refused; merges that produce a control are dropped; and where whole words count,
the control's vocabulary entry is renamed to a spelling outside the byte alphabet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smelt.core.errors import CheckpointError, UnsupportedError
from smelt.tokenizer.vetting import MARKERS, Kind


def control_spellings(spec: Mapping[str, Any]) -> dict[str, int]:
    """Control tokens of a parsed tokenizer.json: every special added token and every known marker."""
    found: dict[str, int] = {}
    for token in spec.get("added_tokens") or []:
        named = isinstance(token, Mapping) and isinstance(token.get("content"), str)
        if not named or type(token.get("id")) is not int:
            raise CheckpointError("tokenizer.json: an added token must have a content and an id")
        if token.get("special") or token["content"] in MARKERS:
            found[token["content"]] = token["id"]
    return found


def text_only(spec: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """A copy of `spec` whose encoder, run with `encode_special_tokens`, gives text no control id.

    Ids stay what they were. Raises UnsupportedError where a control token cannot be told from text.
    """
    controls = control_spellings(spec)
    model = dict(spec["model"])
    for spelling in controls:
        if len(spelling) < 2 or (kind == "byte-fallback" and spelling.startswith("<0x")):
            raise UnsupportedError(f"tokenizer.json: the control token {spelling!r} is spelled like text")
    spelled = [spelling for spelling in controls if spelling in model["vocab"]]
    renamed: dict[str, str] = {}
    if spelled:
        unreachable = set(spelled)
        model["merges"] = [pair for pair in model["merges"] if _result(pair) not in unreachable]
        if model.get("ignore_merges"):
            # A byte-level word never holds a plain space: it is written as another character.
            renamed = {spelling: f" {controls[spelling]} {spelling}" for spelling in spelled}
            model["vocab"] = {renamed.get(key, key): value for key, value in model["vocab"].items()}
    added = [
        {
            **token,
            "content": renamed.get(token["content"], token["content"]),
            "special": token["content"] in controls,
        }
        for token in spec.get("added_tokens") or []
    ]
    return {
        **spec,
        "model": model,
        "added_tokens": added,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _result(pair: Any) -> str:
    # Written as ["a", "b"] or, in older files, "a b".
    if isinstance(pair, str):
        return pair.replace(" ", "", 1)
    return str(pair[0]) + str(pair[1])
