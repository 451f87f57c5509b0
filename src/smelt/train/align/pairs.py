"""Preference pairs that the model writes itself: what it would say without an attack, and what the attack wants.

The better answer is the model's own to the clean prompt, the worse its own to the injected order (SecAlign++, Meta
2025): nobody's style is taught, only whom to listen to. What is kept is a file in OpenAI's preference format, written
chunk by chunk, so that a killed run goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smelt.chat.renderer import Rendered, Renderer
from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.core.messages import Message
from smelt.data.attacked import Attacked, Attacks
from smelt.data.preference_jsonl import preference_line
from smelt.data.preferences import Preference
from smelt.model.decoder import Decoder
from smelt.train.distill.on_policy import OnPolicy, sample
from smelt.train.teachers.online import fingerprint


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """num_prompts: attacked prompts to answer; pairs are fewer. per_batch: drawn at once. max_new: tokens an answer."""

    num_prompts: int
    seed: int = 0
    temperature: float = 0.8
    max_new: int = 96
    per_batch: int = 32

    def __post_init__(self) -> None:
        if self.num_prompts < 1 or self.per_batch < 1:
            raise InvalidRequestError("num_prompts and per_batch: sought at least 1")


@dataclass(frozen=True, kw_only=True)
class PairProgress:
    """How far it is: prompts answered, pairs kept, seconds left at the rate so far."""

    prompts: int
    total: int
    pairs: int
    left_s: float


def write_pairs(
    model: Decoder,
    renderer: Renderer,
    attacks: Attacks,
    settings: PairSettings,
    path: Path,
    *,
    device: torch.device | None = None,
    on_progress: Callable[[PairProgress], None] = lambda _: None,
) -> int:
    """Write pairs to `path`, going on with what is there; returns how many it holds.

    A prompt is left out where an answer does not end or is no message, where the clean answer obeys the order anyway,
    or where both are the same. Raises CheckpointError where parts of other settings or another model lie there.
    """
    parts = path.with_name(path.name + ".parts")
    _claim(parts, model, attacks, settings)
    chunks = [range(i, min(settings.num_prompts, i + settings.per_batch)) for i in _starts(settings)]
    began, done_before = time.monotonic(), 0
    lines: list[str] = []
    for number, chunk in enumerate(chunks):
        part = parts / f"{number:06d}.jsonl"
        if part.is_file():
            lines += part.read_text(encoding="utf-8").splitlines()
            done_before = chunk.stop
            continue
        prompts = [attacks.at(i) for i in chunk]
        found = answered(model, renderer, prompts, settings, number, device or torch.device("cpu"))
        _write(part, [preference_line(pair) for pair in found])
        lines += [preference_line(pair) for pair in found]
        rate = (time.monotonic() - began) / (chunk.stop - done_before)
        left = (settings.num_prompts - chunk.stop) * rate
        on_progress(PairProgress(prompts=chunk.stop, total=settings.num_prompts, pairs=len(lines), left_s=left))
    _write(path, lines)
    return len(lines)


def answered(
    model: Decoder,
    renderer: Renderer,
    prompts: Sequence[Attacked],
    settings: PairSettings,
    number: int,
    device: torch.device,
) -> list[Preference]:
    """The pairs of some prompts. `number` decides the draws, with the seed."""
    draws = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
    better = _replies(model, renderer, [(p.clean, p) for p in prompts], settings, draws, device)
    worse = _replies(model, renderer, [(p.order, None) for p in prompts], settings, draws, device)
    return [
        Preference(prompt=prompt.attacked, chosen=good, rejected=bad, tools=prompt.tools)
        for prompt, good, bad in zip(prompts, better, worse, strict=True)
        if good is not None and bad is not None and good != bad and prompt.word not in good.text
    ]


def _replies(
    model: Decoder,
    renderer: Renderer,
    asked: Sequence[tuple[tuple[Message, ...], Attacked | None]],
    settings: PairSettings,
    draws: torch.Generator,
    device: torch.device,
) -> list[Message | None]:
    """The model's turn behind each prompt; None where it did not end or is no message."""
    rendered = [
        renderer.render(messages, tools=() if source is None else source.tools, open_turn=True)
        for messages, source in asked
    ]
    how = OnPolicy(
        share=1.0,
        max_new=settings.max_new,
        temperature=settings.temperature,
        vocab_len=model.config.vocab_size,
        end_ids=renderer.stop_ids,
        seed=settings.seed,
    )
    known = model.config.num_privileges > 0
    said = [np.frombuffer(prompt.privileges, np.uint8) for prompt in rendered] if known else None
    ids = [np.array(prompt.ids, np.int64) for prompt in rendered]
    with torch.no_grad():
        drawn = sample(model, ids, how, limit=settings.max_new, generator=draws, device=device, privileges=said)
    return [_message(renderer, prompt, row.tolist()) for prompt, row in zip(rendered, drawn, strict=True)]


def _message(renderer: Renderer, prompt: Rendered, drawn: list[int]) -> Message | None:
    if not drawn or drawn[-1] not in renderer.stop_ids:
        return None
    try:
        last = renderer.parse([*prompt.ids, *drawn])[-1]
    except InvalidRequestError:  # it went astray: a control token where none belongs
        return None
    return last if last.role == "assistant" and last.text and not last.tool_calls else None


def _starts(settings: PairSettings) -> range:
    return range(0, settings.num_prompts, settings.per_batch)


def _claim(parts: Path, model: Decoder, attacks: Attacks, settings: PairSettings) -> None:
    told = {
        "model": fingerprint(model),
        "settings": repr(settings),
        "attacks": f"{attacks.split}/{attacks.seed}/{','.join(attacks.languages)}",
    }
    path = parts / "made_by.json"
    if path.is_file() and json.loads(path.read_text()) != told:
        raise CheckpointError(f"{parts.name} holds pairs of another model or of other settings; remove it")
    parts.mkdir(parents=True, exist_ok=True)
    _write(path, [json.dumps(told)])


def _write(path: Path, lines: Sequence[str]) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    staging.replace(path)
