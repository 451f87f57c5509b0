"""The student's own text as training data: it continues the batch's documents, and a teacher scores what it wrote.

On-policy distillation (GKD, Agarwal et al. 2024; Thinking Machines 2025): the student is corrected where its own
mistakes lead it. Shapes: B documents, L prompt tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Privilege
from smelt.data.batches import Batch
from smelt.model.cache import KVCache
from smelt.model.decoder import Decoder

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """share: of batches (lambda) that are continued by the student instead of learned from as they are.

    A document's prompt is what stands before its first learned token; a document learned from its start is cut at a
    random place. Up to `max_new` tokens are drawn at `temperature` from the first `vocab_len` ids; an id of `end_ids`
    ends a continuation and is scored with it; an id of `never_ids` is not drawn.

    What is drawn is a function of (seed, batch, the student's weights): no counter has to survive a resume, and the
    same batch of a later epoch gets other draws.
    """

    share: float = 0.5
    max_new: int = 128
    temperature: float = 1.0
    vocab_len: int
    end_ids: frozenset[int] = frozenset()
    never_ids: frozenset[int] = frozenset()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise InvalidRequestError(f"the on-policy share is {self.share}; sought above 0 and up to 1")
        if self.max_new < 1 or self.temperature <= 0:
            raise InvalidRequestError("on-policy text needs max_new of at least 1 and a temperature above 0")

    @property
    def name(self) -> str:
        """What decides the draws."""
        never = f" never={sorted(self.never_ids)}" if self.never_ids else ""
        return f"on_policy={self.share:g} max_new={self.max_new} T={self.temperature:g} seed={self.seed}{never}"

    @torch.no_grad()
    def continued(self, model: Decoder, batch: Batch, device: torch.device) -> Batch | None:
        """The batch's documents as the student continues them, one a row; None where it is the data's turn.

        None as well where no document has room for a continuation. Raises InvalidRequestError for batches with
        privileges: the student's own text would carry none.
        """
        if batch.privileges is not None:
            raise InvalidRequestError("on-policy text is for batches without privileges")
        generator = torch.Generator().manual_seed(self._seed_of(model, batch))
        if float(torch.rand((), generator=generator)) >= self.share:
            return None
        room = model.config.context_len - 1
        prompts = [p for p in self._prompts(batch, generator) if len(p) <= room]
        if not prompts:
            return None
        limit = min(self.max_new, room - max(map(len, prompts)) + 1)
        rows = sample(model, prompts, self, limit=limit, generator=generator, device=device)
        return _scored(prompts, rows)

    def _seed_of(self, model: Decoder, batch: Batch) -> int:
        digest = hashlib.blake2b(f"on-policy/{self.seed}".encode(), digest_size=7)
        digest.update(batch.inputs.tobytes())
        # A gain per hidden channel stands for all weights: AdamW moves every one of them at every step.
        digest.update(model.model.norm.weight.detach().float().cpu().numpy().tobytes())
        return int.from_bytes(digest.digest(), "big")

    def _prompts(self, batch: Batch, generator: torch.Generator) -> Iterator[Ids]:
        for ids, targets in documents(batch):
            learned = np.flatnonzero(targets >= 0)
            if not len(learned):
                continue
            first = int(learned[0])
            if first == 0 and len(ids) > 1:
                first = int(torch.randint(len(ids), (), generator=generator))
            yield ids[: first + 1]


def documents(batch: Batch) -> Iterator[tuple[Ids, Ids]]:
    """Inputs and targets of every document, in row-major order; of an unpacked row up to its last learned token."""
    for row in range(len(batch.inputs)):
        inputs, targets = batch.inputs[row], batch.targets[row]
        if batch.segment_ids is None:
            learned = np.flatnonzero(targets >= 0)
            end = int(learned[-1]) + 1 if len(learned) else 0
            if end:
                yield inputs[:end], targets[:end]
            continue
        segments = batch.segment_ids[row]
        for segment in range(int(segments.max(initial=-1)) + 1):
            inside = segments == segment
            yield inputs[inside], targets[inside]


def sample(
    model: Decoder,
    prompts: Sequence[Ids],
    settings: OnPolicy,
    *,
    limit: int,
    generator: torch.Generator,
    device: torch.device,
    privileges: Sequence[NDArray[np.uint8]] | None = None,
) -> list[Ids]:
    """Continuations of up to `limit` tokens, drawn by the model in one batch; each ends with an end id or the limit.

    All rows stand at the same position: the common part of the prompts is computed at once, then a row whose prompt is
    longer is fed its own tokens until it ends. So the cache needs no padding and no mask, and a row's tokens are what
    the row alone would have given. privileges: who said each prompt token, for a model that has a table of that; what
    is drawn is the assistant's.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    shortest, longest = int(lengths.min()), int(lengths.max())
    text = np.zeros((len(prompts), longest + limit), dtype=np.int64)
    said = np.full(text.shape, int(Privilege.ASSISTANT), dtype=np.uint8)
    for row, prompt in enumerate(prompts):
        text[row, : len(prompt)] = prompt
        if privileges is not None:
            said[row, : len(prompt)] = privileges[row]

    def hidden(part: slice) -> Tensor:
        ids, by = (torch.from_numpy(array[:, part]).to(device) for array in (text, said))
        known = model.config.num_privileges and privileges is not None
        return model.hidden(ids, privileges_BT=by if known else None, cache=cache)[:, -1:]

    uniform = torch.rand((len(prompts), limit), generator=generator, dtype=torch.float64).numpy()
    cache = KVCache(model.config, batch=len(prompts), capacity=longest + limit, device=device)
    ends = lengths + limit
    done = np.zeros(len(prompts), dtype=bool)
    hidden_B1H = hidden(slice(0, shortest))
    for place in range(shortest, longest + limit):
        free = (place >= lengths) & ~done & (place < ends)
        if free.any():
            drawn = _draw(
                model.logits(hidden_B1H)[:, 0], settings, uniform[np.arange(len(prompts)), _at(place, lengths, limit)]
            )
            text[free, place] = drawn[free]
            ended = free & np.isin(text[:, place], list(settings.end_ids))
            ends[ended], done[ended] = place + 1, True
        if (done | (place + 1 >= ends)).all():
            break
        hidden_B1H = hidden(slice(place, place + 1))
    return [text[row, lengths[row] : ends[row]].copy() for row in range(len(prompts))]


def _at(place: int, lengths: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Which of its random numbers each row is at."""
    return np.clip(place - lengths, 0, limit - 1)


def _draw(logits_BV: Tensor, settings: OnPolicy, uniform_B: NDArray[np.float64]) -> Ids:
    """One id a row, by inverting the cumulative distribution in float64: the same on every device."""
    logits = logits_BV[:, : settings.vocab_len].double().cpu() / settings.temperature
    logits[:, sorted(settings.never_ids)] = -torch.inf
    cumulative = logits.softmax(-1).cumsum(-1)
    goal = torch.from_numpy(uniform_B)[:, None] * cumulative[:, -1:]
    drawn: Ids = torch.searchsorted(cumulative, goal, right=True)[:, 0].clamp_max(settings.vocab_len - 1).numpy()
    return drawn


def _scored(prompts: Sequence[Ids], rows: Sequence[Ids]) -> Batch:
    """Prompts with their continuations, padded on the right, the continuations learned."""
    width = max(len(prompt) + len(row) for prompt, row in zip(prompts, rows, strict=True)) - 1
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), -100, dtype=np.int64)
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        whole = np.concatenate([prompt, row])
        inputs[i, : len(whole) - 1] = whole[:-1]
        targets[i, len(prompt) - 1 : len(whole) - 1] = row
    return Batch(inputs, targets)
