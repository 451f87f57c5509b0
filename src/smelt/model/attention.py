"""How the tokens of a row see each other: a value per kind of layer and pass, made by `attends`, called by the layers.

No path of training holds a [T, T] tensor: packed documents attend one by one, sliding windows attend in blocks, and
what is left is the fused kernel's own causal path. A dense mask remains where a cache holds earlier tokens.
Shapes: B rows, T queries, L keys, N heads, K key/value heads, D head width, C block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smelt.model.attention_mask import additive_mask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 64  # no smaller blocks of a window: below that, the calls cost more than the scores they save


class Attend(Protocol):
    """[B, N, T, D] queries on [B, K, L, D] keys and values to [B, N, T, D]; scores are multiplied by `scale`."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend."""
        ...


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Torch's fused kernel, causal where there is no mask; without one its memory is linear in T."""
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


@dataclass(frozen=True, slots=True)
class Masked:
    """Keys by a dense additive mask, [T, L] or [B, 1, T, L]: queries behind a cache, and the slow twin of the rest."""

    mask: Tensor

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend."""
        return _fused(q, k, v, scale, self.mask)


@dataclass(frozen=True, slots=True)
class Causal:
    """Every token sees itself and all before it."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend."""
        return _fused(q, k, v, scale)


@dataclass(frozen=True, slots=True)
class Sliding:
    """Every token sees itself and the `window - 1` tokens before it.

    Behind the first window, queries go in blocks of C, each with its own keys and those of the `parts` blocks before
    it: T (window + C) scores instead of T^2. Against a dense mask that took 0.26 of the time at window 1,024 and
    T = 4,096 (forward and backward, one Zen 3 core); one block a window (parts = 1) took 0.43.
    """

    window: int
    parts: int
    block: int
    mask: Tensor  # [C, parts C + C], the same for every block
    head_mask: Tensor | None  # of the first parts C tokens, where these are more than a window

    @classmethod
    def of(cls, window: int, like: Tensor) -> Sliding:
        """Masks in the dtype and on the device of `like`."""
        parts = min(4, max(1, window // _BLOCK))
        block = -(-window // parts)
        first = parts * block
        places = torch.arange(first + block, device=like.device)

        def mask(low: int, high: int) -> Tensor:
            return additive_mask(places[low:high], places[:high], window=window, dtype=like.dtype)

        return cls(window, parts, block, mask(first, first + block), mask(0, first) if first > window else None)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend."""
        B, N, T, D = q.shape
        if self.window >= T:
            return _fused(q, k, v, scale)
        first = min(T, self.parts * self.block)
        head_mask = None if self.head_mask is None else self.head_mask[:first, :first]
        head = _fused(q[:, :, :first], k[:, :, :first], v[:, :, :first], scale, head_mask)
        if first == T:
            return head
        num = -(-T // self.block) - self.parts  # blocks of queries behind the first window
        fill = (0, 0, 0, (num + self.parts) * self.block - T)
        queries = F.pad(q[:, :, first:], fill).view(B, N, num, self.block, D).transpose(1, 2).flatten(0, 1)
        out = _fused(queries, self._bands(F.pad(k, fill)), self._bands(F.pad(v, fill)), scale, self.mask)
        behind = out.view(B, num, N, self.block, D).transpose(1, 2).flatten(2, 3)
        return torch.cat((head, behind[:, :, : T - first]), dim=2)

    def _bands(self, x: Tensor) -> Tensor:
        """[B, K, blocks C, D] to what each block of queries sees, [B (blocks - parts), K, parts C + C, D]."""
        B, K, L, D = x.shape
        blocks = x.view(B, K, L // self.block, self.block, D)
        num = blocks.shape[2] - self.parts
        bands = torch.cat([blocks[:, :, i : i + num] for i in range(self.parts + 1)], dim=3)
        return bands.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Packed:
    """Documents behind each other in a row, each attending alone as `inside` says; padding gives zeros.

    lengths: of each row's documents from left to right; together at most T. The loop costs about 50 microseconds a
    document and layer, forward and backward, where 150 tokens take 900.
    """

    lengths: tuple[tuple[int, ...], ...]
    inside: Attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend."""
        return each_document(self.lengths, lambda *heads: self.inside(heads[0], heads[1], heads[2], scale), (q, k, v))


def each_document(lengths: Sequence[Sequence[int]], inside: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """`inside` of each document alone; of all tensors time is in the third place, and padding gives zeros.

    The result has the shape of the first tensor. Stays out of compiled graphs, which would be made anew for every other
    set of lengths.
    """
    if torch.compiler.is_compiling():
        apart: Any = torch.compiler.disable(_rows)  # type: ignore[no-untyped-call]
        return cast(Tensor, apart(lengths, inside, tensors))
    return _rows(lengths, inside, tensors)


def _rows(lengths: Sequence[Sequence[int]], inside: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
    rows = zip(*(torch.split(tensor, 1) for tensor in tensors), strict=True)
    return torch.cat([_row(row, length, inside) for row, length in zip(rows, lengths, strict=True)])


def _row(tensors: Sequence[Tensor], lengths: Sequence[int], inside: Callable[..., Tensor]) -> Tensor:
    cuts = [*lengths, tensors[0].shape[2] - sum(lengths)]
    pieces = list(zip(*(torch.split(tensor, cuts, 2) for tensor in tensors), strict=True))
    found = [inside(*piece) for piece in pieces[:-1]]
    return torch.cat([*found, torch.zeros_like(pieces[-1][0])], dim=2)


@dataclass(frozen=True, slots=True)
class Flex:
    """Packed documents on an accelerator: one compiled kernel that skips blocks no query sees; memory linear in T."""

    blocks: BlockMask

    @classmethod
    def of(cls, segment_ids_BT: Tensor, window: int | None, *, compiled: bool = True) -> Flex:
        """`compiled=False` is for tests: it makes the [T, T] mask on the way."""
        from torch.nn.attention.flex_attention import create_block_mask

        def visible(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = (key <= query) & (segment_ids_BT[b, query] == segment_ids_BT[b, key])
            return seen if window is None else seen & (query - key < window)

        make: Any = torch.compile(create_block_mask) if compiled else create_block_mask
        B, T = segment_ids_BT.shape
        return cls(make(visible, B, None, T, T, device=segment_ids_BT.device.type))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend."""
        flex: Any = _compiled_flex() if q.is_cuda else _flex()
        out: Tensor = flex(q, k, v, block_mask=self.blocks, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out


def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _compiled_flex() -> Any:
    """Uncompiled, flex_attention would hold all scores."""
    return torch.compile(_flex())


def document_lengths(segment_ids_BT: Tensor) -> tuple[tuple[int, ...], ...]:
    """Lengths of each row's documents from left to right, without the padding at the end.

    Raises ValueError where a document is in two pieces or padding stands before one.
    """
    rows = []
    for ids in segment_ids_BT.tolist():
        starts = [t for t in range(len(ids)) if t == 0 or ids[t] != ids[t - 1]]
        names = [ids[t] for t in starts]
        padded = -1 in names
        if len(set(names)) != len(names) or (padded and names[-1] != -1):
            raise ValueError(
                "segment ids: sought one run of places per document and padding (-1) at the end, "
                f"found the runs {names[:20]}"
            )
        ends = [*starts[1:], len(ids)]
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        rows.append(tuple(lengths[:-1] if padded else lengths))
    return tuple(rows)


def places_in_documents(segment_ids_BT: Tensor) -> Tensor:
    """0, 1, ... from the start of each run of equal ids, [B, T]."""
    places = torch.arange(segment_ids_BT.shape[1], device=segment_ids_BT.device).expand(segment_ids_BT.shape)
    begins = torch.ones_like(segment_ids_BT, dtype=torch.bool)
    begins[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def attends(
    windows: Iterable[int | None], past: int, segment_ids_BT: Tensor | None, like: Tensor
) -> dict[int | None, Attend]:
    """One Attend per kind of layer for T = `like`.shape[1] new tokens behind `past` cached ones."""
    T, kinds = like.shape[1], set(windows)
    if past:
        queries, keys = (torch.arange(low, past + T, device=like.device) for low in (past, 0))
        return {w: Masked(additive_mask(queries, keys, window=w, dtype=like.dtype)) for w in kinds}
    if segment_ids_BT is None:
        return {w: _alone(w, T, like) for w in kinds}
    if segment_ids_BT.is_cuda:
        return {w: Flex.of(segment_ids_BT, w) for w in kinds}
    lengths = document_lengths(segment_ids_BT)
    longest = max((length for row in lengths for length in row), default=0)
    return {w: Packed(lengths, _alone(w, longest, like)) for w in kinds}


def _alone(window: int | None, longest: int, like: Tensor) -> Attend:
    """For documents of at most `longest` tokens, one in a row."""
    return Causal() if window is None or longest <= window else Sliding.of(window, like)
