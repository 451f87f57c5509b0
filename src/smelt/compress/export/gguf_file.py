"""A model as one GGUF file, and llama.cpp's word on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smelt.chat.renderer import Control
from smelt.checkpoint.gguf import Format, Header, PackedTensors, Written, header_of, write_gguf
from smelt.compress.export.compare import Check, compare_logits, compare_texts, our_logits, sample_ids
from smelt.compress.export.llama_reader import Answers, Questions, ask
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
_NEAR = 0.9  # share of tokens that a near expression must cut the same: small vocabularies have few short words whole


@dataclass(frozen=True, kw_only=True, slots=True)
class GGUF:
    """What a written file is made of, for the comparison."""

    plain: Plain
    header: Header
    tensors: PackedTensors
    words: Exported
    format: Format


def write(
    path: Path, plain: Plain, tokenizer: Tokenizer, renderer: Renderer | None, format: Format, name: str
) -> tuple[GGUF, Written]:
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
    chats = _chats(made, renderer)
    prompt = renderer.render(CONVERSATION, open_turn=True).ids if renderer is not None and chats else []
    questions = Questions(
        ids=ids,
        texts=TEXTS,
        pieces=[tokenizer.encode(text) for text in TEXTS],
        chats=[as_openai(messages) for messages in chats.values()],
        prompt=prompt,
    )
    try:
        answers = ask(path, questions)
    except CheckpointError as error:
        return [Check(name="loads", passed=False, told=str(error))]
    checks = [*_check_logits(answers, made, ids)]
    checks.append(compare_texts(tokenizer, answers.encoded, 1.0 if made.words.exact else _NEAR))
    checks.append(_check_texts_back(answers, tokenizer))
    checks.append(_check_ends(answers, made, renderer, adds_bos=tokenizer.bos_id is not None))
    if renderer is None or not chats:
        return checks
    for (name, messages), rendered in zip(chats.items(), answers.chats, strict=True):
        ours = renderer.render(messages, open_turn=True).ids
        checks.append(_check_chat(name, rendered, ours, made, tokenizer, renderer))
    return [*checks, Check(name="answers", passed=True, found=answers.answer, told=repr(answers.answer))]


def _chats(made: GGUF, renderer: Renderer | None) -> dict[str, tuple[Message, ...]]:
    """The conversations to render: with a call where the template is ours."""
    if renderer is None or not made.words.vocabulary.chat_template:
        return {}
    return {"chat": CONVERSATION, "chat with a call": CALLS} if renderer.name == "house" else {"chat": CONVERSATION}


def _check_logits(answers: Answers, made: GGUF, ids: list[int]) -> list[Check]:
    config = made.plain.config
    meaning = {name: made.tensors.meaning(name) for name in config.tensor_shapes()}
    limit = _ROUNDED if made.format in ("q8_0", "q4_0") else _EXACT
    stored = compare_logits("logits, what is stored", answers.logits, our_logits(config, meaning, ids), limit)
    del meaning
    ours_TV = our_logits(config, made.plain.tensors, ids)
    same = _EXACT if made.format in ("f32", "f16") else None
    return [stored, compare_logits("logits, the source", answers.logits, ours_TV, same)]


def _check_texts_back(answers: Answers, tokenizer: Tokenizer) -> Check:
    sought = [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS]
    # A leading space is what SentencePiece puts in front of a text; both sides may leave it there or take it away.
    both = zip(answers.written, sought, strict=True)
    wrong = [text for found, text in both if found.removeprefix(" ") != text.removeprefix(" ")]
    told = f"{len(TEXTS) - len(wrong)} of {len(TEXTS)} texts come back" + (f"; not {wrong[0][:40]!r}" if wrong else "")
    return Check(name="texts of ids", passed=not wrong, found=len(wrong), sought=0, told=told)


def _check_ends(answers: Answers, made: GGUF, renderer: Renderer | None, *, adds_bos: bool) -> Check:
    """An answer must end where ours does, and not within a call."""
    eos_ids = made.plain.config.eos_ids
    wrong = [f"{token} does not end an answer" for token in eos_ids[:2] if token not in answers.ends]
    if renderer is not None:
        syntax = renderer.call_syntax
        inside = {part.id for part in (*syntax.begin, *syntax.middle) if isinstance(part, Control)}
        wrong += [f"{token}, inside a call, ends it" for token in sorted((inside - set(eos_ids)) & answers.ends)]
    if answers.adds_bos != adds_bos:
        wrong.append(f"a text gets {'a' if answers.adds_bos else 'no'} begin token")
    return Check(name="begin and end", passed=not wrong, found=len(wrong), sought=0, told="; ".join(wrong) or "as ours")


def _check_chat(
    name: str, rendered: tuple[str, list[int]], ours: list[int], made: GGUF, tokenizer: Tokenizer, renderer: Renderer
) -> Check:
    """A conversation by the file's template, cut by the reader, must give our renderer's ids.

    Formats of others may say more in their template than our renderer does: there the ids are sought that the folder's
    own tokenizer gives the same text. Where texts are cut only nearly the same, control tokens must stand in the same
    order and the text between them be equal.
    """
    text, found = rendered
    mine = renderer.name == "house" or found == ours
    sought, by = (ours, "our renderer") if mine else (_library_ids(tokenizer, text), "the folder's tokenizer")
    passed = found == sought
    told = f"{len(found)} ids, {'equal to' if passed else 'other than'} {by}'s"
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

    return list(tokenizers.Tokenizer.from_str(tokenizer.json).encode(text, add_special_tokens=False).ids)
