"""Collects a prompt: ids, privileges and loss mask grow together."""

from __future__ import annotations

from smelt.chat.renderer import Rendered
from smelt.core.messages import Privilege
from smelt.tokenizer import Tokenizer


class PromptBuilder:
    """Controls go in by id, texts through the encoder, so no text can bring a control with it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._privileges = bytearray()
        self._loss_mask = bytearray()

    def control(self, token_id: int, privilege: Privilege, *, learn: bool = False) -> None:
        """Append one control token; `learn` sets its loss mask."""
        self._extend([token_id], privilege, learn)

    def text(self, text: str, privilege: Privilege, *, learn: bool = False) -> None:
        """Append the ids of a text."""
        if text:
            self._extend(self._tokenizer.encode(text), privilege, learn)

    def _extend(self, ids: list[int], privilege: Privilege, learn: bool) -> None:
        self._ids += ids
        self._privileges += bytes([privilege]) * len(ids)
        self._loss_mask += bytes([learn]) * len(ids)

    def rendered(self) -> Rendered:
        """The prompt so far."""
        return Rendered(self._ids, bytes(self._privileges), bytes(self._loss_mask))
