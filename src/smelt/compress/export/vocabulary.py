"""A tokenizer as llama.cpp runs it: its arrays, the name of its expression, and what that name does not say.

llama.cpp cuts texts by expressions that it knows by name; a file cannot bring its own. Ours are not among them, but
nearly follow from one that is ("tekken": words with the one character before them, digits one by one), because merges
never crossed our cuts and llama.cpp takes a word that is a token whole. What must not merge is left out of the merges:
then a long word parts from its space, as in "copying", and an apostrophe from what is no contraction. What remains is
measured by every export: short lower-case words that are not one token with their space lose it to a token of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smelt.chat import Renderer
from smelt.chat.house_template import HOUSE_TEMPLATE
from smelt.chat.renderer import Control
from smelt.checkpoint.gguf import Vocabulary
from smelt.checkpoint.gguf.vocabulary import TokenKind
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError, UnsupportedError
from smelt.tokenizer import Tokenizer
from smelt.tokenizer.bytelevel import to_bytes
from smelt.tokenizer.patterns import NAMES
from smelt.tokenizer.pieces import adds_leading_space
from smelt.tokenizer.vetting import pre_tokenizer_steps, steps, vet

_SPACE = "\u0120"  # a space in the byte-level alphabet
# By the expressions in their order, and whether a word that is a token is taken whole.
_NAMED: dict[tuple[tuple[str, ...], bool], str] = {
    (("gpt2",), False): "gpt-2",
    (("cl100k_base",), True): "llama-bpe",
    (("cl100k_base",), False): "dbrx",
    (("o200k_base",), False): "gpt-4o",
    (("qwen2",), False): "qwen2",
    (("tekken",), True): "tekken",
    (("single digits", "gpt2"), False): "smollm",
}
_NEAR = "tekken"
_ENDS_FOR_LLAMA_CPP = frozenset({"<|call|>", "<|return|>", "<|calls|>", "<|flush|>"})
"""Names that llama.cpp takes for the end of an answer wherever they appear, because one model means that by them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """exact: whether llama.cpp cuts every text as we do, but for what the notes say."""

    vocabulary: Vocabulary
    exact: bool
    notes: tuple[str, ...]


def vocabulary_of(tokenizer: Tokenizer, renderer: Renderer | None, config: DecoderConfig) -> Exported:
    """The vocabulary of a folder. Raises UnsupportedError for a tokenizer that llama.cpp has no name for."""
    spec = json.loads(tokenizer.json)
    notes = []
    if any(step["type"] in ("NFC", "NFD", "NFKC", "NFKD") for step in steps(spec.get("normalizer"), "normalizers")):
        notes.append("llama.cpp does not normalise text (NFC and the like); composed text is the same")
    byte_level = vet(spec) == "byte-level"
    names = _control_names(tokenizer, renderer)
    tokens, kinds = _tokens(spec, names, config.vocab_size, byte_level=byte_level)
    shared: dict[str, Any] = {
        "tokens": tokens,
        "kinds": kinds,
        "special_ids": _special_ids(tokenizer, config),
        "add_bos": tokenizer.bos_id is not None,
        "chat_template": _template(tokenizer, renderer, names),
    }
    if not byte_level:
        vocabulary = Vocabulary(
            model="llama", scores=_scores(spec, tokens), add_space_prefix=adds_leading_space(spec), **shared
        )
        return Exported(vocabulary=vocabulary, exact=True, notes=tuple(notes))
    merges = [_pair(merge) for merge in spec["model"]["merges"]]
    pre, ours = _expression(spec)
    if ours:
        merges = [pair for pair in merges if not _crosses(pair, ours)]
        notes.append(
            f"llama.cpp cannot be told the expression '{ours}': the file says '{pre}' and leaves "
            f"{len(spec['model']['merges']) - len(merges)} merges out, which is nearly the same"
        )
    vocabulary = Vocabulary(model="gpt2", pre=pre, merges=tuple(f"{a} {b}" for a, b in merges), **shared)
    return Exported(vocabulary=vocabulary, exact=not ours, notes=tuple(notes))


def _expression(spec: Mapping[str, Any]) -> tuple[str, str]:
    """llama.cpp's name for how a text is cut, and the name of our expression where that is only near, else ""."""
    found = []
    for step in pre_tokenizer_steps(spec):
        if step["type"] == "Split":
            found.append(NAMES.get(str(step["pattern"].get("Regex")), "?"))
        elif step["type"] == "ByteLevel":
            found += ["gpt2"] if step.get("use_regex", True) else []
        elif step["type"] == "Digits":
            found.append("single digits" if step.get("individual_digits") else "?")
        else:
            found.append("?")
    if found in (["house"], ["copying"]):
        return _NEAR, found[0]
    whole = bool(spec["model"].get("ignore_merges"))
    if (name := _NAMED.get((tuple(found), whole))) is None:
        known = "; ".join(" then ".join(key) for key, _ in _NAMED)
        raise UnsupportedError(
            f"llama.cpp has no name that we know for a tokenizer that cuts by {' then '.join(found) or 'nothing'}"
            f"{' and takes whole words' if whole else ''}; known are {known}"
        )
    return name, ""


def _crosses(pair: tuple[str, str], ours: str) -> bool:
    """Whether a merge may join, under the near expression, what ours keeps apart.

    An apostrophe and letters: only whole contractions, which are tokens. A space and letters: in "copying" only short
    words, which mostly are tokens too.
    """
    joined = pair[0] + pair[1]
    first, rest = joined[0], to_bytes(joined[1:])
    if first not in ("'", _SPACE) or (first == _SPACE and ours == "house"):
        return False
    try:
        text = (rest or b"").decode("utf-8")
    except UnicodeDecodeError:
        return True  # a piece of a character, so of a letter
    return any(char.isalpha() for char in text)


def _tokens(
    spec: Mapping[str, Any], controls: Mapping[int, str], size: int, *, byte_level: bool
) -> tuple[tuple[str, ...], tuple[TokenKind, ...]]:
    """Text and kind of every id up to the rows of the embedding."""
    tokens = [f"[UNUSED{i}]" for i in range(size)]
    kinds: list[TokenKind] = ["unused"] * size
    unknown = spec["model"].get("unk_token")
    entries: list[tuple[str, int, TokenKind]] = [(text, i, "normal") for text, i in spec["model"]["vocab"].items()]
    entries += [(token["content"], token["id"], "user_defined") for token in spec.get("added_tokens") or []]
    entries += [(name, i, "control") for i, name in controls.items()]
    for text, i, kind in entries:
        if i >= size:
            raise CheckpointError(f"the tokenizer has an id {i}, the model only {size} rows")
        tokens[i], kinds[i] = text, kind
        if not byte_level and text == unknown:
            kinds[i] = "unknown"
        elif not byte_level and kind == "normal" and len(text) == 6 and text.startswith("<0x"):
            kinds[i] = "byte"
    if len(set(tokens)) != size:
        raise CheckpointError("the tokenizer has two ids of one text, and GGUF knows a token by its text")
    return tuple(tokens), tuple(kinds)


def _control_names(tokenizer: Tokenizer, renderer: Renderer | None) -> dict[int, str]:
    """Control tokens by id; what stands inside a call is renamed where llama.cpp would stop at it."""
    names = {token_id: name for name, token_id in tokenizer.control_ids.items()}
    syntax = renderer.call_syntax if renderer is not None else None
    inside = [] if syntax is None else [*syntax.begin, *syntax.middle, *syntax.end, *syntax.between]
    for part in inside:
        if isinstance(part, Control) and names[part.id] in _ENDS_FOR_LLAMA_CPP:
            names[part.id] = names[part.id].replace("<|", "<|begin_", 1)
    return names


def _special_ids(tokenizer: Tokenizer, config: DecoderConfig) -> dict[str, int]:
    found = {"bos": tokenizer.bos_id if tokenizer.bos_id is not None else config.bos_id, "pad": config.pad_id}
    found |= dict(zip(("eos", "eot"), config.eos_ids, strict=False))
    return {name: token_id for name, token_id in found.items() if token_id is not None}


def _template(tokenizer: Tokenizer, renderer: Renderer | None, names: Mapping[int, str]) -> str:
    """The folder's Jinja template (the house's own stands in), with the names that the file has for control tokens."""
    house = renderer is not None and renderer.name == "house"
    template = tokenizer.config.get("chat_template") or (HOUSE_TEMPLATE if house else "")
    if isinstance(template, list):  # several by name, in older folders
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default") or ""
    for name, token_id in tokenizer.control_ids.items():
        if names[token_id] != name:
            template = str(template).replace(name, names[token_id])
    return str(template)


def _scores(spec: Mapping[str, Any], tokens: Sequence[str]) -> tuple[float, ...]:
    """A score per id whose order is that of the merges: the earliest that makes a token counts, others come last."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(spec["model"]["merges"]):
        ranks.setdefault("".join(_pair(merge)), rank)
    last = float(len(spec["model"]["merges"]))
    return tuple(-float(ranks.get(token, last)) for token in tokens)


def _pair(merge: Any) -> tuple[str, str]:
    """Written as ["a", "b"] or, in older files, "a b"."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right
