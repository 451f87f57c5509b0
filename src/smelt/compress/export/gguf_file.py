"""A model as one GGUF file, and llama.cpp's word on it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smelt.checkpoint.gguf import Format, Header, PackedTensors, header_of, write_gguf
from smelt.compress.export.compare import Check, compare_logits, compare_texts, our_logits, sample_ids
from smelt.compress.export.llama_reader import LlamaReader
from smelt.compress.export.samples import CALLS, CONVERSATION, TEXTS, as_openai
from smelt.compress.export.vocabulary import Exported, vocabulary_of
from smelt.core.errors import CheckpointError

if TYPE_CHECKING:
    from smelt.chat import Renderer
    from smelt.compress.export.plain import Plain
    from smelt.core.messages import Message
    from smelt.tokenizer import Tokenizer

_EXACT = 1e-2  # relative error of logits: float16 weights, and inputs that llama.cpp rounds to float16
_ROUNDED = 5e-2  # of blocks in 8 or 4 bits against what they stand for: llama.cpp rounds the inputs to 8 bits
_NEAR = 0.95  # share of tokens that a near expression must cut the same
_ANSWER = 24  # tokens of an answer that is shown


@dataclass(frozen=True, kw_only=True, slots=True)
class GGUF:
    """What a written file is made of, for the comparison."""

    plain: Plain
    header: Header
    tensors: PackedTensors
    words: Exported
    format: Format


def write(path: Path, plain: Plain, tokenizer: Tokenizer, renderer: Renderer | None, format: Format, name: str) -> Any:
    """Write the file; what it is made of, and how many matrices are in which format.

    Raises UnsupportedError, naming it, for what llama.cpp cannot be told.
    """
    header = header_of(plain.config)
    words = vocabulary_of(tokenizer, renderer, plain.config)
    tensors = PackedTensors(plain.config, plain.tensors, plain.quantized, format=format, header=header)
    written = write_gguf(path, header, tensors, words.vocabulary, name=name, format=format)
    return GGUF(plain=plain, header=header, tensors=tensors, words=words, format=format), written


def check(path: Path, made: GGUF, tokenizer: Tokenizer, renderer: Renderer | None) -> list[Check]:
    """Everything llama.cpp makes of the file, against what we make of the model."""
    config = made.plain.config
    ids = sample_ids(tokenizer, config, made.header.context_len)
    try:
        reader = LlamaReader(path, context_len=max(512, len(ids) + _ANSWER))
    except CheckpointError as error:
        return [Check(name="loads", passed=False, told=str(error))]
    with contextlib.closing(reader):
        found_TV = reader.logits(ids)
        meaning = {name: made.tensors.meaning(name) for name in config.tensor_shapes()}
        limit = _ROUNDED if made.format in ("q8_0", "q4_0") else _EXACT
        checks = [compare_logits("logits, what is stored", found_TV, our_logits(config, meaning, ids), limit)]
        del meaning
        ours_TV = our_logits(config, made.plain.tensors, ids)
        same = _EXACT if made.format in ("f32", "f16") else None
        checks.append(compare_logits("logits, the source", found_TV, ours_TV, same))
        checks.append(compare_texts(tokenizer, reader.encode, 1.0 if made.words.exact else _NEAR))
        checks.append(_check_texts_back(tokenizer, reader))
        checks.append(_check_ends(reader, config.eos_ids, renderer, adds_bos=tokenizer.bos_id is not None))
        if renderer is not None and made.words.vocabulary.chat_template:
            checks += _check_chats(reader, made, tokenizer, renderer)
    return checks


def _check_texts_back(tokenizer: Tokenizer, reader: LlamaReader) -> Check:
    wrong = [
        text for text in TEXTS if reader.text(tokenizer.encode(text)).removeprefix(" ") != _written(tokenizer, text)
    ]
    told = f"{len(TEXTS) - len(wrong)} of {len(TEXTS)} texts come back" + (f"; not {wrong[0][:40]!r}" if wrong else "")
    return Check(name="texts of ids", passed=not wrong, found=len(wrong), sought=0, told=told)


def _written(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text)).removeprefix(" ")


def _check_ends(reader: LlamaReader, eos_ids: tuple[int, ...], renderer: Renderer | None, *, adds_bos: bool) -> Check:
    """An answer must end where ours does, and not within a call."""
    from smelt.chat.renderer import Control

    wrong = [f"{token} does not end an answer" for token in eos_ids[:2] if not reader.ends(token)]
    if renderer is not None:
        syntax = renderer.call_syntax
        inside = {part.id for part in (*syntax.begin, *syntax.middle) if isinstance(part, Control)}
        wrong += [f"{token}, inside a call, ends it" for token in sorted(inside - set(eos_ids)) if reader.ends(token)]
    if reader.adds_bos != adds_bos:
        wrong.append(f"a text gets {'a' if reader.adds_bos else 'no'} begin token")
    return Check(name="begin and end", passed=not wrong, found=len(wrong), sought=0, told="; ".join(wrong) or "as ours")


def _check_chats(reader: LlamaReader, made: GGUF, tokenizer: Tokenizer, renderer: Renderer) -> list[Check]:
    house = renderer.name == "house"
    checks = [_check_chat("chat", reader, made, tokenizer, renderer, CONVERSATION)]
    if house:
        checks.append(_check_chat("chat with a call", reader, made, tokenizer, renderer, CALLS))
    prompt = renderer.render(CONVERSATION, open_turn=True).ids
    answer = reader.text(reader.answer(prompt, _ANSWER))
    checks.append(Check(name="answers", passed=True, found=answer, told=repr(answer)))
    return checks


def _check_chat(
    name: str,
    reader: LlamaReader,
    made: GGUF,
    tokenizer: Tokenizer,
    renderer: Renderer,
    messages: tuple[Message, ...],
) -> Check:
    """A conversation by the file's template, cut by the reader, must give our renderer's ids.

    Formats of others may say more in their template than our renderer does: there the ids are sought that the folder's
    own tokenizer gives the same text. Where texts are cut only nearly the same, control tokens must stand in the same
    order and the text between them be equal.
    """
    text = reader.render(as_openai(messages), open_turn=True)
    found = reader.encode(text, controls=True)
    ours = renderer.render(messages, open_turn=True).ids
    sought, by = (
        (ours, "our renderer")
        if renderer.name == "house" or found == ours
        else (_library_ids(tokenizer, text), "the folder's")
    )
    passed = found == sought
    told = f"{len(found)} ids, {'equal to' if passed else 'other than'} {by}"
    if not passed and not made.words.exact:
        passed = _outline(tokenizer, found) == _outline(tokenizer, sought)
        told += f"; {'the same' if passed else 'other'} controls and texts"
    return Check(name=name, passed=passed, found=len(found), sought=len(sought), told=told)


def _outline(tokenizer: Tokenizer, ids: list[int]) -> list[bytes | int]:
    """Control ids as they are, and the bytes of the text between them."""
    controls = frozenset(tokenizer.control_ids.values())
    outline: list[bytes | int] = []
    for token in ids:
        if token in controls:
            outline.append(token)
        elif outline and isinstance(outline[-1], bytes):
            outline[-1] += tokenizer.token_bytes(token)
        else:
            outline.append(tokenizer.token_bytes(token))
    return outline


def _library_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text with control tokens in it, as other programs read the folder."""
    import tokenizers

    spec = json.loads(tokenizer.json)
    return list(tokenizers.Tokenizer.from_str(json.dumps(spec)).encode(text, add_special_tokens=False).ids)
