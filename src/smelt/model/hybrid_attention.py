"""Softmax attention in a window and linear attention behind it, under one denominator (LoLCATs, arXiv:2410.10254).

    o_t = (g sum_near exp(s_ti - m_t) v_i + sum_far f_t.f_i v_i) / (g sum_near exp(s_ti - m_t) + sum_far f_t.f_i)

with s = scale q.k, m the largest score in the window, f positive features of queries and keys, and g the window's
weight. Near are a token and the w - 1 before it, far all older ones. Far tokens need no key and no value any more:
their sums are products of f_t with S = sum f_i v_i^T and z = sum f_i.

Three forms of the same sum: `recurrent` token by token, `chunked` in blocks, `quadratic` with every weight written out.
Shapes: B rows, K key/value heads, G queries a key/value head, T new tokens, L keys (R kept ones, then T new), D head
width, E features, w window, C block, n blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_BLOCK = 64  # no smaller blocks: below that, the calls cost more than the scores they save
_TINY = 1e-30  # for a denominator of nothing: with the window switched off, the first tokens see nothing


@dataclass(frozen=True, slots=True)
class Tokens:
    """What enters: queries of the last T of L tokens, keys and values of all L, features of both.

    q [B, K, G, T, D], k and v [B, K, L, D], fq [B, K, G, T, E], fk [B, K, L, E].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    fq: Tensor
    fk: Tensor

    @property
    def num_kept(self) -> int:
        """R: keys in front without a query here, which were in the window of the last token before these."""
        return self.k.shape[2] - self.q.shape[3]


@dataclass(frozen=True, slots=True)
class Sums:
    """Of the tokens that have left the window: S [B, K, E, D] and z [B, K, E]."""

    values: Tensor
    features: Tensor

    @classmethod
    def nothing(cls, tokens: Tokens) -> Sums:
        """Of no tokens."""
        B, K, _, D = tokens.v.shape
        E = tokens.fk.shape[-1]
        return cls(tokens.v.new_zeros(B, K, E, D), tokens.v.new_zeros(B, K, E))

    def after(self, tokens: Tokens, window: int) -> Sums:
        """With those that are far for whatever comes behind `tokens`: all but the w - 1 newest."""
        cut = max(0, tokens.k.shape[2] - (window - 1))
        f_BKLE, v_BKLD = tokens.fk[:, :, :cut], tokens.v[:, :, :cut]
        return Sums(self.values + f_BKLE.mT @ v_BKLD, self.features + f_BKLE.sum(2))


@dataclass(frozen=True, slots=True)
class Blend:
    """How near and far meet: w, the factor of scores, and g of each head, [K, G]."""

    window: int
    scale: float
    weights: Tensor

    def pairs(self, q: Tensor, k: Tensor, fq: Tensor, fk: Tensor, distance: Tensor) -> Tensor:
        """[..., K, G, T, L]: the weight of every key for every query, whose distance is [..., T, L]; 0 if negative."""
        near = (distance >= 0) & (distance < self.window)
        scores = (self.scale * q @ k.mT).masked_fill(~near, -torch.inf)
        softmax = (scores - scores.amax(-1, keepdim=True)).exp() * self.weights[..., None, None]
        return softmax + (fq @ fk.mT).masked_fill(distance < self.window, 0.0)


def recurrent(tokens: Tokens, sums: Sums, blend: Blend) -> Tensor:
    """[B, K, G, T, D]; token by token: the window's keys and the state, however much came before."""
    S_BKED, z_BKE = sums.values, sums.features
    out = []
    for t in range(tokens.q.shape[3]):
        last = tokens.num_kept + t
        seen = slice(max(0, last - blend.window + 1), last + 1)
        k_BKwD, v_BKwD = tokens.k[:, :, seen], tokens.v[:, :, seen]
        scores_BKGw = blend.scale * tokens.q[:, :, :, t] @ k_BKwD.mT
        near_BKGw = blend.weights[..., None] * (scores_BKGw - scores_BKGw.amax(-1, keepdim=True)).exp()
        query_BKGE = tokens.fq[:, :, :, t]
        top_BKGD = near_BKGw @ v_BKwD + query_BKGE @ S_BKED
        bottom_BKG1 = near_BKGw.sum(-1, keepdim=True) + query_BKGE @ z_BKE[..., None]
        out.append(top_BKGD / bottom_BKG1.clamp_min(_TINY))
        if last >= blend.window - 1:  # the oldest of the window is far for the next token
            leaving_BKE1 = tokens.fk[:, :, seen.start, :, None]
            S_BKED = S_BKED + leaving_BKE1 * v_BKwD[:, :, :1]
            z_BKE = z_BKE + leaving_BKE1[..., 0]
    return torch.stack(out, dim=3)


def quadratic(tokens: Tokens, sums: Sums, blend: Blend) -> Tensor:
    """[B, K, G, T, D]; by the [T, L] weights of all pairs: the slow twin."""
    T, L = tokens.q.shape[3], tokens.k.shape[2]
    places = torch.arange(L, device=tokens.k.device)
    k, v, fk = (x[:, :, None] for x in (tokens.k, tokens.v, tokens.fk))
    pairs_BKGTL = blend.pairs(tokens.q, k, tokens.fq, fk, places[L - T :, None] - places)
    top = pairs_BKGTL @ v + tokens.fq @ sums.values[:, :, None]
    bottom = pairs_BKGTL.sum(-1, keepdim=True) + tokens.fq @ sums.features[:, :, None, :, None]
    return top / bottom.clamp_min(_TINY)


def chunked(tokens: Tokens, sums: Sums, blend: Blend, *, block: int = _BLOCK) -> Tensor:
    """[B, K, G, T, D]; blocks of C = max(block, w) queries meet the keys of their own block and of the one before it.

    Older blocks are in running sums: T (2 C + E) weights instead of T^2.
    """
    C, R = max(block, blend.window), tokens.num_kept
    B, K, L, D = tokens.k.shape
    if L <= 2 * C:
        return quadratic(tokens, sums, blend)
    n = -(-L // C)
    behind = n * C - L
    # As many queries as keys: those before the first are zeros, and their outputs are dropped.
    q, fq = (_blocks(F.pad(x, (0, 0, R, behind)), C) for x in (tokens.q, tokens.fq))
    k, v, fk = (_blocks(F.pad(x, (0, 0, 0, behind))[:, :, None], C) for x in (tokens.k, tokens.v, tokens.fk))
    S_BnK1ED = _before(fk.mT @ v, sums.values[:, None, :, None])
    z_BnK1E = _before(fk.sum(-2), sums.features[:, None, :, None])
    places = torch.arange(2 * C, device=k.device)
    distance_nCC = (places[C:, None] - places).repeat(n, 1, 1)
    distance_nCC[0, :, :C] = -1  # nothing is before the first block
    k, v, fk = (torch.cat((F.pad(x, (0,) * 8 + (1, 0))[:, :n], x), dim=-2) for x in (k, v, fk))
    pairs = blend.pairs(q, k, fq, fk, distance_nCC[:, None, None])
    bottom = pairs.sum(-1, keepdim=True) + fq @ z_BnK1E[..., None]
    out_BnKGCD = (pairs @ v + fq @ S_BnK1ED) / bottom.clamp_min(_TINY)
    return out_BnKGCD.permute(0, 2, 3, 1, 4, 5).reshape(B, K, -1, n * C, D)[:, :, :, R:L]


def _blocks(x: Tensor, block: int) -> Tensor:
    """[B, K, G, n C, X] to [B, n, K, G, C, X]."""
    return torch.unflatten(x, 3, (-1, block)).permute(0, 3, 1, 2, 4, 5)


def _before(of_block: Tensor, start: Tensor) -> Tensor:
    """[B, n, ...]: `start` and all blocks but the one before the present one."""
    summed = of_block.cumsum(1)[:, :-2]
    return start + torch.cat((torch.zeros_like(of_block[:, :2]), summed), dim=1)
