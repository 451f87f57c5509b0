"""Teachers: for a batch, what a distillation loss needs to know of every learned token.

A teacher shares the student's vocabulary, id by id; heads may be padded to different lengths behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from smelt.core.errors import UnsupportedError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer
from smelt.train.objectives import learned_hidden
from smelt.train.teachers.signals import Dense, Signal


class Teacher(Protocol):
    """Answers for batches. `fingerprint` names its weights (or its cache): it goes into the lineage."""

    @property
    def fingerprint(self) -> str:
        """Hex."""
        ...

    @property
    def samples_only(self) -> bool:
        """Whether it knows drawn ids only, and so serves forward KL only."""
        ...

    @property
    def temperature(self) -> float | None:
        """The temperature its distributions were stored at; None: any can be had."""
        ...

    def signal(self, batch: Batch, device: torch.device) -> Signal:
        """Its word on the batch's learned tokens, row by row."""
        ...


class DecoderTeacher:
    """A decoder in memory, never trained. `vocab_len`: ids shared with the student (`shared_vocabulary`)."""

    samples_only = False
    temperature = None

    def __init__(self, model: Decoder, vocab_len: int) -> None:
        if model.config.vocab_size < vocab_len:
            raise UnsupportedError(f"the teacher's head has {model.config.vocab_size} rows, the vocabulary {vocab_len}")
        self.model = model.eval().requires_grad_(False)
        self.vocab_len = vocab_len
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Of the configuration and every weight; computed once."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    @torch.no_grad()
    def signal(self, batch: Batch, device: torch.device) -> Dense:
        """One forward pass; keeps the hidden states of the learned tokens only. The model follows to `device`."""
        if self.model.head_weight.device != device:
            self.model.to(device)
        return Dense(learned_hidden(self.model, batch, device), self.model.head_weight, self.vocab_len)


def load_teacher(folder: Path | str, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> DecoderTeacher:
    """The model of a folder as teacher of a student with `tokenizer`.

    Raises CheckpointError for a folder that cannot be used and UnsupportedError for another vocabulary.
    """
    from smelt.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    vocab_len = shared_vocabulary(tokenizer, Tokenizer.load(folder))
    model = Decoder.from_tensors(checkpoint.config, checkpoint.tensors).to(device)
    return DecoderTeacher(model, vocab_len)


def fingerprint(model: Decoder) -> str:
    """Hex sha256 of a decoder's configuration and all its weights."""
    digest = hashlib.sha256(repr(_told(model.config)).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _told(value: Any) -> Any:
    """A configuration without the fields at their defaults: a field added to the class renames no older model."""
    if is_dataclass(value):
        told = {field.name: _told(getattr(value, field.name)) for field in fields(value)}
        return {f.name: told[f.name] for f in fields(value) if getattr(value, f.name) != f.default}
    return tuple(map(_told, value)) if isinstance(value, tuple) else value


def shared_vocabulary(student: Tokenizer, teacher: Tokenizer) -> int:
    """The number of ids, once student and teacher are known to mean the same by each of them.

    Content is compared, not size: what each id writes, and the name of each control token. Raises UnsupportedError with
    both sizes and the first id that differs.
    """
    if student.json == teacher.json:
        return student.vocab_size
    names, other_names = _names_by_id(student), _names_by_id(teacher)
    for token_id in range(max(student.vocab_size, teacher.vocab_size)):
        ours = _meaning(student, names, token_id)
        theirs = _meaning(teacher, other_names, token_id)
        if ours != theirs:
            raise UnsupportedError(
                f"student and teacher have different vocabularies ({student.vocab_size} and {teacher.vocab_size} ids): "
                f"id {token_id} is {ours} for the student and {theirs} for the teacher; sought a teacher with the "
                "student's own tokenizer (a text teacher needs none: see docs/distillation.md)"
            )
    return student.vocab_size


def _names_by_id(tokenizer: Tokenizer) -> Mapping[int, str]:
    return {token_id: name for name, token_id in tokenizer.control_ids.items()}


def _meaning(tokenizer: Tokenizer, names: Mapping[int, str], token_id: int) -> str:
    if token_id in names:
        return f"the control token {names[token_id]}"
    return repr(tokenizer.token_bytes(token_id)) if token_id < tokenizer.vocab_size else "nothing"
