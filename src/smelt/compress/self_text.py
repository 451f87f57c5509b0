"""What a model writes of itself: calibration text where there is no data, always at hand and free of licences.

Half of it begins as a text does. A chat model's other half are conversations: the model writes a user's message behind
the header of the user's turn, then answers it (Magpie, Xu et al. 2024, arXiv:2406.08464).
Every draw is a function of seed, batch number and weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from smelt.chat.formats import renderer_of_folder
from smelt.chat.renderer import Renderer
from smelt.compress.stage import Progress
from smelt.core.messages import Message, Privilege, TextPart
from smelt.data.batches import Encoded
from smelt.data.corpus.shards import write_whole
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer
from smelt.train.distill.on_policy import OnPolicy, sample
from smelt.train.hardware import pick_device

if TYPE_CHECKING:
    from smelt.checkpoint import Checkpoint
    from smelt.compress.calibration import CalibrationConfig

_ROWS = 16  # written side by side
_FIRST_LEN = 8  # tokens before which nothing ends
_QUESTION_LEN = 64  # of a user's message at most, and no more than a quarter of a conversation


def written_by(
    source: Checkpoint,
    config: CalibrationConfig,
    *,
    scratch: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> list[Encoded]:
    """`num_sequences` sequences of at most `max_len` ids; what lies in `scratch` is not written again."""
    tokenizer = Tokenizer.load(source.folder)
    device = pick_device("auto")
    made: list[Encoded] = []
    writer: _Writer | None = None
    began, here = time.monotonic(), 0
    for number, start in enumerate(range(0, config.num_sequences, _ROWS)):
        rows = min(_ROWS, config.num_sequences - start)
        kept = None if scratch is None else scratch / f"written-{_key(source, config)}-{number:04d}.npz"
        if kept is not None and kept.is_file():
            made += _read(kept)
            continue
        if writer is None:
            decoder = Decoder.from_tensors(source.config, source.tensors).to(device)
            writer = _Writer(decoder, tokenizer, renderer_of_folder(tokenizer), config, device)
        batch = writer.conversations(number, rows) if writer.renderer and number % 2 else writer.texts(number, rows)
        if kept is not None:
            _keep(kept, batch)
        made, here = made + batch, here + rows
        left_s = (time.monotonic() - began) / here * (config.num_sequences - len(made))
        on_progress(Progress(unit="written sequences", done=len(made), total=config.num_sequences, left_s=left_s))
    return made


@dataclass(frozen=True)
class _Writer:
    """A model with what it needs to write."""

    decoder: Decoder
    tokenizer: Tokenizer
    renderer: Renderer | None
    config: CalibrationConfig
    device: torch.device

    def texts(self, number: int, rows: int) -> list[Encoded]:
        """From the begin id on."""
        shape = self.decoder.config
        first = next((one for one in (self.tokenizer.bos_id, shape.bos_id, *shape.eos_ids) if one is not None), 0)
        begin = Encoded([first], b"\x00", bytes([Privilege.ASSISTANT]))
        return self._text([begin] * rows, frozenset(shape.eos_ids), self.config.max_len, f"text/{number}")

    def conversations(self, number: int, rows: int) -> list[Encoded]:
        """A user's message, then the answer, both the model's."""
        assert self.renderer is not None
        header = _user_header(self.renderer)
        limit = max(1, min(_QUESTION_LEN, self.config.max_len // 4))
        asked = self._text([header] * rows, self.renderer.stop_ids, limit, f"question/{number}")
        prompts = []
        for question in asked:
            text = self.tokenizer.decode(question.ids[len(header.ids) :]).strip() or "?"
            prompt = self.renderer.render([Message(role="user", content=(TextPart(text),))], open_turn=True)
            prompts.append(Encoded(prompt.ids, prompt.loss_mask, prompt.privileges))
        room = self.config.max_len - 1
        prompts = [one if len(one.ids) <= room else header for one in prompts]
        longest = self.config.max_len + 1 - max(len(one.ids) for one in prompts)
        return self._continued(prompts, self._settings(longest, self.renderer.stop_ids), f"answer/{number}")

    def _text(self, prompts: Sequence[Encoded], ends: frozenset[int], limit: int, name: str) -> list[Encoded]:
        """Text without control ids, which does not end at once: a model that was taught to answer has not learned to
        begin, and left alone it draws one control id after the other."""
        controls = frozenset(self.tokenizer.control_ids.values())
        first = min(_FIRST_LEN, limit)
        begun = self._continued(prompts, self._settings(first, frozenset(), controls | ends), f"{name}/first")
        if first == limit:
            return begun
        return self._continued(begun, self._settings(limit - first, ends, controls - ends), name)

    def _settings(self, limit: int, ends: frozenset[int], never: frozenset[int] = frozenset()) -> OnPolicy:
        vocab_len = min(self.tokenizer.vocab_size, self.decoder.config.vocab_size)
        return OnPolicy(
            max_new=limit,
            temperature=self.config.temperature,
            vocab_len=vocab_len,
            end_ids=ends,
            never_ids=frozenset(one for one in never if one < vocab_len),
        )

    @torch.no_grad()
    def _continued(self, prompts: Sequence[Encoded], settings: OnPolicy, name: str) -> list[Encoded]:
        seed = hashlib.blake2b(f"{self.config.seed}/{name}".encode(), digest_size=7).digest()
        drawn = sample(
            self.decoder,
            [np.array(prompt.ids, np.int64) for prompt in prompts],
            settings,
            limit=settings.max_new,
            generator=torch.Generator().manual_seed(int.from_bytes(seed, "big")),
            device=self.device,
            privileges=[np.frombuffer(prompt.privileges, np.uint8) for prompt in prompts],
        )
        said = bytes([Privilege.ASSISTANT])
        return [
            Encoded(
                [*prompt.ids, *row.tolist()],
                prompt.loss_mask + b"\x01" * len(row),
                prompt.privileges + said * len(row),
            )
            for prompt, row in zip(prompts, drawn, strict=True)
        ]


def _user_header(renderer: Renderer) -> Encoded:
    """What stands in front of a user's first word: what two conversations with different ones begin with."""
    one, other = (renderer.render([Message(role="user", content=(TextPart(text),))]) for text in ("1", "2"))
    num = next(i for i, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)) if a != b)
    return Encoded(one.ids[:num], one.loss_mask[:num], one.privileges[:num])


def _key(source: Checkpoint, config: CalibrationConfig) -> str:
    decisive = [source.fingerprint, config.num_sequences, config.max_len, config.temperature, config.seed]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]


def _keep(path: Path, batch: Sequence[Encoded]) -> None:
    arrays = {}
    for i, one in enumerate(batch):
        arrays[f"ids.{i}"] = np.array(one.ids, np.int64)
        arrays[f"mask.{i}"] = np.frombuffer(one.loss_mask, np.uint8)
        arrays[f"said.{i}"] = np.frombuffer(one.privileges, np.uint8)
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    write_whole(path, data.getvalue())


def _read(path: Path) -> list[Encoded]:
    with np.load(path, allow_pickle=False) as file:
        return [
            Encoded(file[f"ids.{i}"].tolist(), file[f"mask.{i}"].tobytes(), file[f"said.{i}"].tobytes())
            for i in range(len(file.files) // 3)
        ]
