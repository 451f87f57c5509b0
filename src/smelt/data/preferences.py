"""Pairs of answers to one prompt, the better one named: what preference tuning learns from.

A batch of P pairs is one row of 2P documents behind each other, each attending alone: document 2p is the chosen answer
of pair p with its prompt, document 2p + 1 the rejected one. So there is no padding between answers of unlike length,
and a pair of 65,536-token documents is a batch like any other. Only the last answer's tokens are learned.
Shapes: P pairs, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smelt.chat.renderer import Renderer
from smelt.core.errors import DataError
from smelt.core.messages import Message, Tool
from smelt.data.batches import Batch, Encoded
from smelt.data.packing import Piece, lay_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROW_MULTIPLE = 64  # lengths an accelerator's kernels are compiled for once, and not per batch


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt and two assistant turns that could follow it, `chosen` the better one."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Both documents, prompt included, as ids; only the last answer is marked as learned."""

    chosen: Encoded
    rejected: Encoded


@dataclass(frozen=True, slots=True)
class PairBatch(Batch):
    """P pairs in one row, inputs [1, T]; segment_ids tell the documents apart.

    references [P, 2]: summed log-probabilities of the chosen and the rejected answer under the reference model, in
    nats; None while they are what is being computed.
    """

    references: NDArray[np.float64] | None = None

    @property
    def num_pairs(self) -> int:
        """P."""
        return (int(self.segment_ids.max()) + 1) // 2 if self.segment_ids is not None else 0


def encode_answer(
    renderer: Renderer, prompt: Sequence[Message], answer: Message, tools: Sequence[Tool] = ()
) -> Encoded:
    """A prompt and its answer, of which only the answer is learned: earlier assistant turns are context.

    Raises DataError for a chat format in which an answer changes how its prompt is written.
    """
    opened = renderer.render(prompt, tools=tools, open_turn=True)
    whole = renderer.render((*prompt, answer), tools=tools)
    start = len(opened)
    if whole.ids[:start] != opened.ids:
        raise DataError(f"the {renderer.name} chat format writes this prompt otherwise when an answer follows it")
    return Encoded(whole.ids, bytes(start) + whole.loss_mask[start:], whole.privileges)


def encode_pair(renderer: Renderer, preference: Preference) -> EncodedPair:
    """Both answers behind the same prompt."""
    chosen, rejected = (
        encode_answer(renderer, preference.prompt, answer, preference.tools)
        for answer in (preference.chosen, preference.rejected)
    )
    return EncodedPair(chosen, rejected)


def cut(encoded: Encoded, max_len: int) -> Encoded | None:
    """The first `max_len` ids, as OpenAI cuts long examples; None where nothing learned is left."""
    kept = Encoded(encoded.ids[:max_len], encoded.loss_mask[:max_len], encoded.privileges[:max_len])
    return kept if any(kept.loss_mask[1:]) else None


def cut_pair(pair: EncodedPair, max_len: int) -> EncodedPair | None:
    """Both documents cut; None where an answer is cut away whole, or both to the same ids."""
    chosen, rejected = cut(pair.chosen, max_len), cut(pair.rejected, max_len)
    if chosen is None or rejected is None or chosen.ids == rejected.ids:
        return None
    return EncodedPair(chosen, rejected)


def collate_pairs(
    pairs: Sequence[EncodedPair], pad_id: int, references: NDArray[np.float64] | None = None
) -> PairBatch:
    """The pairs as one row, filled up with padding to a round length."""
    documents = [document for pair in pairs for document in (pair.chosen, pair.rejected)]
    row = one_row(documents, pad_id)
    return PairBatch(row.inputs, row.targets, row.segment_ids, row.privileges, references)


def one_row(documents: Sequence[Encoded], pad_id: int) -> Batch:
    """Documents behind each other in one row [1, T], with who said each token."""
    pieces = [Piece.of(document) for document in documents]
    row_len = -(-sum(map(len, pieces)) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    return lay_out([pieces], row_len, pad_id, privileges=True)


def epoch_order(num: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which `num` examples are seen in an epoch: each once, otherwise every time."""
    return np.random.default_rng((seed, epoch)).permutation(num)


@dataclass(frozen=True, kw_only=True)
class PairStream:
    """`train.loop.Stream`: chunk n is epoch n, each pair once, `pairs_per_batch` a batch, in an order by seed.

    references: [num pairs, 2], in the order of `pairs` (train/align/reference.py).
    """

    pairs: Sequence[EncodedPair]
    references: NDArray[np.float64]
    pad_id: int
    pairs_per_batch: int
    seed: int

    def chunk(self, number: int) -> list[PairBatch]:
        """Epoch `number`."""
        order = epoch_order(len(self.pairs), self.seed, number)
        groups = [order[i : i + self.pairs_per_batch] for i in range(0, len(order), self.pairs_per_batch)]
        return [collate_pairs([self.pairs[i] for i in group], self.pad_id, self.references[group]) for group in groups]


def pairs_digest(pairs: Sequence[EncodedPair]) -> str:
    """Hex sha256 of everything a log-probability of these pairs depends on but the model, in their order."""
    digest = hashlib.sha256()
    for document in (document for pair in pairs for document in (pair.chosen, pair.rejected)):
        for part in (np.array(document.ids, np.int64).tobytes(), document.loss_mask, document.privileges):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
