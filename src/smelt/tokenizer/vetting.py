"""What a foreign tokenizer.json may hold before any of it runs. Unknown is refused by name, never guessed.

Format: the serialisation of the `tokenizers` library, version 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

from smelt.core.errors import CheckpointError, UnsupportedError
from smelt.tokenizer.bytelevel import ALPHABET
from smelt.tokenizer.patterns import NAMES

MAX_JSON_CHARS = 128 << 20

Kind = Literal["byte-level", "byte-fallback"]

# Markers that some folders list as ordinary added tokens although their chat format gives them meaning.
_MARKER_NAMES = (
    "<tool_call> </tool_call> <tool_response> </tool_response> <tools> </tools> <think> </think> "
    "<start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <bos> <eos> <pad> <unk> <mask> "
    "<s> </s> [INST] [/INST] <<SYS>> <</SYS>> [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
    "[TOOL_RESULTS] [/TOOL_RESULTS] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [IMG] [IMG_BREAK] [IMG_END]"
)
MARKERS = frozenset(_MARKER_NAMES.split())

_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Replace", "Prepend"}
_PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Metaspace"}
_MODEL_WANTS = {"dropout": (None, 0), "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, "")}


def steps(node: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    """The flat list of a normalizer, pre-tokenizer or decoder; `inner` names the list inside a Sequence."""
    if node is None:
        return
    if not isinstance(node, Mapping) or not isinstance(node.get("type"), str):
        raise CheckpointError("tokenizer.json: a processing step must be an object with a type")
    if node["type"] != "Sequence":
        yield node
        return
    for step in node.get(inner) or []:
        yield from steps(step, inner)


def pre_tokenizer_steps(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The steps that cut a text before the merges."""
    return list(steps(spec.get("pre_tokenizer"), "pretokenizers"))


def decoder_steps(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The steps that join tokens to text."""
    return list(steps(spec.get("decoder"), "decoders"))


def vet(spec: Mapping[str, Any]) -> Kind:
    """Check a parsed tokenizer.json and tell how its vocabulary spells bytes.

    Raises CheckpointError when it is malformed, UnsupportedError when it asks for something smelt does not run.
    """
    model = spec.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("vocab"), Mapping | list):
        raise CheckpointError("tokenizer.json: sought a model with a vocabulary, found none")
    if model.get("type", "BPE") != "BPE" or not isinstance(model["vocab"], Mapping):
        raise UnsupportedError(f"tokenizer.json: model type {model.get('type')!r}; smelt runs BPE only")
    for key, allowed in _MODEL_WANTS.items():
        if model.get(key) not in allowed:
            raise UnsupportedError(f"tokenizer.json: model.{key} = {model[key]!r} is not supported")
    _vet_vocab(model["vocab"])
    for step in steps(spec.get("normalizer"), "normalizers"):
        if step["type"] not in _NORMALIZERS:
            raise UnsupportedError(f"tokenizer.json: normalizer {step['type']!r}; known are {sorted(_NORMALIZERS)}")
        _vet_pattern(step)
    for step in pre_tokenizer_steps(spec):
        if step["type"] not in _PRE_TOKENIZERS:
            raise UnsupportedError(
                f"tokenizer.json: pre-tokenizer {step['type']!r}; known are {sorted(_PRE_TOKENIZERS)}"
            )
        _vet_pattern(step)
        if step.get("behavior") == "Removed":
            raise UnsupportedError("tokenizer.json: a Split that removes text is not supported")
        if step["type"] == "Metaspace" and step.get("replacement") != "\u2581":
            raise UnsupportedError(f"tokenizer.json: Metaspace with {step.get('replacement')!r} is not supported")
    return _kind(spec)


def _vet_vocab(vocab: Mapping[str, Any]) -> None:
    ids = list(vocab.values())
    if not all(type(i) is int and 0 <= i < 1 << 24 for i in ids):
        raise CheckpointError("tokenizer.json: every vocabulary id must be an integer from 0 to 16777215")
    if len(set(ids)) != len(ids):
        raise CheckpointError("tokenizer.json: two vocabulary entries share an id")


def _vet_pattern(step: Mapping[str, Any]) -> None:
    pattern = step.get("pattern")
    if pattern is None:
        return
    if not isinstance(pattern, Mapping):
        raise CheckpointError("tokenizer.json: a pattern must be an object")
    expression = pattern.get("Regex")
    if expression is not None and expression not in NAMES:
        known = ", ".join(sorted(NAMES.values()))
        raise UnsupportedError(
            f"tokenizer.json: unknown expression {str(expression)[:200]!r} in {step['type']}. smelt runs only "
            f"the expressions it knows, because an unknown one may never end: {known}"
        )


def _kind(spec: Mapping[str, Any]) -> Kind:
    vocab = cast("Mapping[str, int]", spec["model"]["vocab"])
    byte_level = [step for step in pre_tokenizer_steps(spec) if step["type"] == "ByteLevel"]
    if byte_level:
        if any(step.get("add_prefix_space", True) for step in byte_level):
            raise UnsupportedError("tokenizer.json: ByteLevel with add_prefix_space changes the text; not supported")
        missing = sum(char not in vocab for char in ALPHABET)
        kind: Kind = "byte-level"
    elif spec["model"].get("byte_fallback"):
        missing = sum(f"<0x{byte:02X}>" not in vocab for byte in range(256))
        kind = "byte-fallback"
    else:
        raise UnsupportedError("tokenizer.json: neither byte-level nor with byte fallback; some texts have no tokens")
    if missing:
        raise UnsupportedError(f"tokenizer.json: {missing} of 256 bytes have no token, so some texts have none")
    if kind == "byte-fallback" and spec["model"].get("ignore_merges"):
        raise UnsupportedError("tokenizer.json: byte_fallback together with ignore_merges is not supported")
    return kind
