"""Documents into rows of T tokens with next to no padding.

Best-fit decreasing (Johnson 1974) over one chunk of documents: the longest first, each into the fullest row that still
takes it. Running text may be cut, so it fills what whole conversations leave. What a model sees of a document is
decided by `segment_ids`: it attends within its document only, and no target crosses a border.
Shapes: R rows, T tokens, n tokens of a document.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from smelt.core.errors import DataError
from smelt.data.batches import Batch, Encoded

if TYPE_CHECKING:
    from numpy.typing import NDArray

Long = Literal["cut", "leave_out"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What stands together in a row: a document, or a part of one that may be cut.

    inputs [n] and targets [n]: a token and its successor where that is learned, else -100. privileges [n]: of the
    inputs. A document of n + 1 ids makes n pairs, so a cut loses none: the next part begins with the last target.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    privileges: NDArray[np.uint8]
    cuttable: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    @classmethod
    def of(cls, encoded: Encoded, *, cuttable: bool = False) -> Self:
        """A conversation of at least two ids; only what its mask marks is learned."""
        ids = np.array(encoded.ids, dtype=np.int64)
        learned = np.frombuffer(encoded.loss_mask, dtype=np.uint8)[1:] == 1
        privileges = np.frombuffer(encoded.privileges or bytes(len(ids)), dtype=np.uint8)
        return cls(ids[:-1], np.where(learned, ids[1:], -100), privileges[:-1], cuttable)

    def cut(self, start: int, stop: int | None = None) -> Self:
        """Pairs `start` to `stop`."""
        part = slice(start, stop)
        return type(self)(self.inputs[part], self.targets[part], self.privileges[part], self.cuttable)


def fitted(pieces: Sequence[Piece], row_len: int, long: Long) -> list[Piece]:
    """Pieces that fit into rows of `row_len`: longer ones cut there, or left out."""
    found = []
    for piece in pieces:
        if len(piece) <= row_len:
            found.append(piece)
        elif long == "cut":
            found.extend(piece.cut(start, start + row_len) for start in range(0, len(piece), row_len))
    return found


def pack(pieces: Sequence[Piece], row_len: int) -> list[list[Piece]]:
    """Rows of pieces, together at most `row_len` tokens each, as few as best-fit decreasing finds.

    Cuttable pieces are cut where that saves a row, so with enough of them all rows but the last are full. The same
    pieces always give the same rows. Raises DataError for a piece that no row can hold.
    """
    shelf = _Shelf(row_len)
    whole = sorted((piece for piece in pieces if not piece.cuttable), key=len, reverse=True)
    if whole and len(whole[0]) > row_len:
        raise DataError(f"sought documents of at most {row_len} tokens a row, found one of {len(whole[0])}")
    for piece in whole:
        if not shelf.place(piece):
            shelf.open(piece)
    loose = sorted(fitted([p for p in pieces if p.cuttable], row_len, "cut"), key=len, reverse=True)
    needed = max(len(shelf.rows), -(-sum(len(piece) for piece in pieces) // row_len))
    for piece in loose:
        if shelf.place(piece):
            continue
        if len(shelf.rows) < needed:
            shelf.open(piece)
        else:
            shelf.pour(piece)
    return shelf.rows


class _Shelf:
    """Rows and what is free in them."""

    def __init__(self, row_len: int) -> None:
        self.row_len = row_len
        self.rows: list[list[Piece]] = []
        self._free: list[tuple[int, int]] = []  # (free tokens, row), ascending; full rows left out

    def place(self, piece: Piece) -> bool:
        """Into the fullest row that takes all of it, if there is one."""
        at = bisect.bisect_left(self._free, (len(piece), -1))
        if at == len(self._free):
            return False
        self._put(at, piece)
        return True

    def open(self, piece: Piece) -> None:
        """Into a row of its own."""
        self.rows.append([piece])
        self._give_back(self.row_len - len(piece), len(self.rows) - 1)

    def pour(self, piece: Piece) -> None:
        """In parts into the emptiest rows: few cuts, and the total of free places is known to suffice."""
        while not self.place(piece):
            free, _ = self._free[-1]
            self._put(len(self._free) - 1, piece.cut(0, free))
            piece = piece.cut(free)

    def _put(self, at: int, piece: Piece) -> None:
        free, row = self._free.pop(at)
        self.rows[row].append(piece)
        self._give_back(free - len(piece), row)

    def _give_back(self, free: int, row: int) -> None:
        if free:
            bisect.insort(self._free, (free, row))


def lay_out(rows: Sequence[Sequence[Piece]], row_len: int, pad_id: int, *, privileges: bool = False) -> Batch:
    """Rows of pieces as one batch [R, T]; with `privileges` it says who wrote each token."""
    shape = (len(rows), row_len)
    inputs, targets = np.full(shape, pad_id, np.int64), np.full(shape, -100, np.int64)
    segments, speakers = np.full(shape, -1, np.int32), np.zeros(shape, np.uint8)
    for i, row in enumerate(rows):
        start = 0
        for number, piece in enumerate(row):
            place = slice(start, start + len(piece))
            inputs[i, place], targets[i, place] = piece.inputs, piece.targets
            segments[i, place], speakers[i, place] = number, piece.privileges
            start += len(piece)
    return Batch(inputs, targets, segments, speakers if privileges else None)
