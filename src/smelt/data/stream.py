"""Corpora and conversations as packed batches, in an order that is a function of seed and number alone.

A stream is cut into chunks; a chunk takes a fixed number of tokens from each source, by weight, packs them into
rows and deals the rows out to its batches. So batch i can be computed by anyone at any time without those
before it: workers, ranks and resumed runs see the same order. Shapes: T tokens a row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from smelt.chat.renderer import Renderer
from smelt.core.errors import DataError
from smelt.core.messages import Privilege
from smelt.data.batches import Batch, Encoded, ExampleAt, encode
from smelt.data.packing import Piece, fitted, lay_out, pack
from smelt.data.shards import TokenShards

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXAMPLES_PER_CHUNK = 1 << 20  # examples are numbered chunk by chunk; no chunk uses as many
_MOST_LEFT_OUT = 1000  # in a row
_SPARE = 0.99  # of a chunk is filled with what cannot be cut; a little more, and the rest stands in a row of its own


class Source(Protocol):
    """Documents by chunk; `cuttable` where they may be cut anywhere, as running text may."""

    @property
    def cuttable(self) -> bool:
        """Whether its pieces are."""
        ...

    def pieces(self, chunk: int, num_tokens: int) -> list[Piece]:
        """`num_tokens` tokens, on average where they cannot be cut; always the same for the same two numbers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Documents of a corpus, every token learned; each epoch has each token once, in a new order of documents.

    A chunk takes the next `num_tokens` tokens of that order, so the documents at its two ends are cut.
    """

    cuttable: ClassVar[bool] = True
    shards: TokenShards
    seed: int

    def pieces(self, chunk: int, num_tokens: int) -> list[Piece]:
        """Exactly `num_tokens` tokens. Raises DataError for an empty corpus."""
        found = []
        for index, start, stop in self._order.spans(chunk * num_tokens, num_tokens):
            ids = self.shards.document(index)[start : stop + 1].astype(np.int64)
            speakers = np.full(len(ids) - 1, int(Privilege.ASSISTANT), np.uint8)
            found.append(Piece(ids[:-1], ids[1:], speakers, cuttable=True))
        return found

    @cached_property
    def _order(self) -> _Order:
        return _Order(self.shards.lengths - 1, self.seed)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A set of conversations, each once an epoch, in a new order each time; those above `max_len` ids left out."""

    cuttable: ClassVar[bool] = False
    documents: Sequence[Encoded]
    max_len: int
    seed: int

    def pieces(self, chunk: int, num_tokens: int) -> list[Piece]:
        """The conversations that begin in this chunk's part of the order. Raises DataError where none are left."""
        spans = self._order.spans(chunk * num_tokens, num_tokens)
        return [Piece.of(self._kept[index]) for index, start, _ in spans if start == 0]

    @cached_property
    def _kept(self) -> list[Encoded]:
        return [document for document in self.documents if 1 < len(document.ids) <= self.max_len]

    @cached_property
    def _order(self) -> _Order:
        return _Order(np.array([len(document.ids) - 1 for document in self._kept], np.int64), self.seed)


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Examples without end, rendered; those above `max_len` ids left out. The assistant's tokens are learned.

    `example_at(i)` must always give the same example for i.
    """

    cuttable: ClassVar[bool] = False
    example_at: ExampleAt
    renderer: Renderer
    max_len: int

    def pieces(self, chunk: int, num_tokens: int) -> list[Piece]:
        """Conversations of `num_tokens` tokens on average. Raises DataError where all are too long.

        The one that would be too much is taken with the probability that makes the average right; always
        or never taking it would favour long or short ones, the more the smaller the share.
        """
        found: list[Piece] = []
        held, left_out, index = 0, 0, chunk * _EXAMPLES_PER_CHUNK
        while True:
            encoded = encode(self.renderer, self.example_at(index))
            index += 1
            if len(encoded.ids) > self.max_len:
                left_out += 1
                if left_out == _MOST_LEFT_OUT:
                    raise DataError(
                        f"sought conversations of at most {self.max_len} ids, {left_out} in a row were longer"
                    )
                continue
            piece, left_out = Piece.of(encoded), 0
            if held + len(piece) > num_tokens:
                fits = random.Random(f"last/{chunk}/{num_tokens}").random() * len(piece) < num_tokens - held
                return [*found, piece] if fits else found
            found.append(piece)
            held += len(piece)


class _Order:
    """Documents of `sizes` tokens behind each other, epoch after epoch, each epoch shuffled anew."""

    def __init__(self, sizes: NDArray[np.int64], seed: int) -> None:
        self.sizes, self.seed = np.maximum(sizes, 0), seed
        self.total = int(self.sizes.sum())
        if self.total == 0:
            raise DataError("sought documents to learn from, found none (or none short enough)")
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __getstate__(self) -> tuple[NDArray[np.int64], int]:
        return self.sizes, self.seed

    def __setstate__(self, state: tuple[NDArray[np.int64], int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _shuffled(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.sizes))
        return order, np.cumsum(self.sizes[order])

    def spans(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(document, first token, one past its last) of places `start` to `start + count`, found by bisection."""
        while count > 0:
            epoch, place = divmod(start, self.total)
            order, ends = self._epoch(epoch)
            at = int(np.searchsorted(ends, place, side="right"))
            index = int(order[at])
            first = place - int(ends[at] - self.sizes[index])
            taken = min(count, int(ends[at]) - place)
            yield index, first, first + taken
            start, count = start + taken, count - taken


@dataclass(frozen=True, kw_only=True)
class PackedStream:
    """Batches of `rows` rows of `row_len` tokens from weighted sources.

    weights are shares of the tokens. A chunk is `batches_per_chunk` batches; with running text among the sources
    each batch has exactly `rows` rows and nearly no padding, as text is cut to fill the gaps; with conversations alone
    it may have one more or less. More rows a chunk fill better: take at least 32.
    """

    sources: Sequence[tuple[Source, float]]
    row_len: int
    rows: int
    pad_id: int
    seed: int
    batches_per_chunk: int = 16
    privileges: bool = False

    def chunk(self, number: int) -> list[Batch]:
        """The batches `number * batches_per_chunk` and following, always `batches_per_chunk` of them."""
        rng = random.Random(f"{self.seed}/{number}")
        capacity = self.row_len * self.rows * self.batches_per_chunk
        aim = capacity * (1.0 if any(source.cuttable for source, _ in self.sources) else _SPARE)
        pieces = [piece for source, share in self._shares for piece in source.pieces(number, round(share * aim))]
        whole = fitted([piece for piece in pieces if not piece.cuttable], self.row_len, "leave_out")
        loose = [piece for piece in pieces if piece.cuttable]
        if loose:
            rng.shuffle(loose)  # so that what is too much is no one source's
            loose = _first(loose, capacity - sum(len(piece) for piece in whole))
        rows = pack(whole + loose, self.row_len)
        rows += [[]] * (self.batches_per_chunk - len(rows))
        rng.shuffle(rows)
        cuts = [round(i * len(rows) / self.batches_per_chunk) for i in range(self.batches_per_chunk + 1)]
        return [
            lay_out(rows[low:high], self.row_len, self.pad_id, privileges=self.privileges)
            for low, high in zip(cuts, cuts[1:], strict=False)
        ]

    @property
    def _shares(self) -> list[tuple[Source, float]]:
        total = sum(weight for _, weight in self.sources)
        if not self.sources or total <= 0 or any(weight < 0 for _, weight in self.sources):
            raise DataError("sought sources with weights of at least 0 and a sum above 0")
        return [(source, weight / total) for source, weight in self.sources if weight > 0]


def batches_of_step(step: int, accumulate: int, rank: int = 0, world: int = 1) -> range:
    """Numbers of the batches that `rank` computes in `step`: of the step's `accumulate`, those that are rank mod world.

    All ranks together compute the same batches whatever their number; batch i stands in chunk i // batches_per_chunk.
    """
    return range(step * accumulate + rank, (step + 1) * accumulate, world)


def _first(pieces: Sequence[Piece], num_tokens: int) -> list[Piece]:
    """As many pieces as hold `num_tokens` tokens, the last one cut."""
    found = []
    for piece in pieces:
        if num_tokens <= 0:
            break
        found.append(piece.cut(0, num_tokens))
        num_tokens -= len(found[-1])
    return found
