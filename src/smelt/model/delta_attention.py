"""The gated delta rule (Yang et al. 2024, arXiv:2412.06464): a state that forgets, and is corrected by each token.

    S_t = a_t S_{t-1} + k_t u_t^T,   u_t = b_t (v_t - a_t S_{t-1}^T k_t),   o_t = S_t^T q_t

with decay a in (0, 1), write strength b in (0, 1) and keys of length 1: what the state says at k_t moves by b
towards v_t. Within a block of C tokens, with c_t the product of the decays from its start to t and Q, K, V, U its rows,

    (1 + L) U = b (V - c K S_0),   L_ti = b_t c_t / c_i k_t.k_i for i < t
    O = c Q S_0 + (Q K^T c_t / c_i for i <= t) U,   S_C = c_C S_0 + sum_i c_C / c_i k_i u_i^T

so that a triangular system stands for the walk over C tokens. Three forms: `recurrent` token by token, `chunked` in
blocks, `quadratic` in one block with every weight written out.
Shapes: B rows, K key/value heads, G queries a key/value head, T tokens, D head width, E width of keys and queries,
C block, n blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Tokens:
    """What enters: q [B, K, G, T, E], k [B, K, T, E], v [B, K, T, D], log_decay (below 0) and write [B, K, T]."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    write: Tensor

    def nothing(self) -> Tensor:
        """The state before the first token, [B, K, E, D]."""
        B, K, _, E = self.k.shape
        return self.v.new_zeros(B, K, E, self.v.shape[-1])


def recurrent(tokens: Tokens, S_BKED: Tensor) -> tuple[Tensor, Tensor]:
    """[B, K, G, T, D] and the state behind them; token by token."""
    out = []
    for t in range(tokens.k.shape[2]):
        k_BKE, v_BKD = tokens.k[:, :, t], tokens.v[:, :, t]
        S_BKED = S_BKED * tokens.log_decay[:, :, t, None, None].exp()
        u_BKD = tokens.write[:, :, t, None] * (v_BKD - torch.einsum("bked,bke->bkd", S_BKED, k_BKE))
        S_BKED = S_BKED + k_BKE[..., None] * u_BKD[..., None, :]
        out.append(tokens.q[:, :, :, t] @ S_BKED)
    return torch.stack(out, dim=3), S_BKED


def quadratic(tokens: Tokens, S_BKED: Tensor) -> tuple[Tensor, Tensor]:
    """[B, K, G, T, D] and the state behind them, by the [T, T] weights that values have in outputs: the slow twin."""
    T = tokens.k.shape[2]
    log_c = tokens.log_decay.cumsum(-1)
    ratio = (log_c[..., :, None] - log_c[..., None, :]).tril().exp().tril()
    b = tokens.write[..., None]
    lower = (b * ratio * (tokens.k @ tokens.k.mT)).tril(-1)
    inverse = torch.linalg.inv(torch.eye(T, dtype=lower.dtype, device=lower.device) + lower)
    c = log_c.exp()[..., None]
    u_BKTD = inverse @ (b * (tokens.v - c * tokens.k @ S_BKED))
    weights_BKGTT = tokens.q @ tokens.k[:, :, None].mT * ratio[:, :, None]
    out = weights_BKGTT @ u_BKTD[:, :, None] + c[:, :, None] * tokens.q @ S_BKED[:, :, None]
    to_end = ratio[..., -1, :, None]
    return out, c[..., -1:, :] * S_BKED + (to_end * tokens.k).mT @ u_BKTD


def chunked(tokens: Tokens, S_BKED: Tensor, *, block: int = _BLOCK) -> tuple[Tensor, Tensor]:
    """[B, K, G, T, D] and the state behind them; all blocks at once but for the state, which walks over n blocks."""
    T = tokens.k.shape[2]
    n = -(-T // block)
    behind = n * block - T  # a token that writes nothing and lets nothing decay changes no state
    q = torch.unflatten(F.pad(tokens.q, (0, 0, 0, behind)), 3, (n, block))
    k, v = (torch.unflatten(F.pad(x, (0, 0, 0, behind)), 2, (n, block)) for x in (tokens.k, tokens.v))
    log_c, b = (torch.unflatten(F.pad(x, (0, behind)), 2, (n, block)) for x in (tokens.log_decay, tokens.write))
    log_c, b = log_c.cumsum(-1), b[..., None]
    ratio_BKnCC = (log_c[..., :, None] - log_c[..., None, :]).tril().exp().tril()
    c = log_c.exp()[..., None]
    lower = (b * ratio_BKnCC * (k @ k.mT)).tril(-1)
    both = torch.cat((b * v, b * c * k), dim=-1)  # what does not depend on the state, and what multiplies it
    solved = torch.linalg.solve_triangular(lower, both, upper=False, unitriangular=True)
    of_v, of_S = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    weights = q @ k[:, :, None].mT * ratio_BKnCC[:, :, None]
    to_state, read = (ratio_BKnCC[..., -1, :, None] * k).mT, c[:, :, None] * q
    out = []
    for i in range(n):
        u_BKCD = of_v[:, :, i] - of_S[:, :, i] @ S_BKED
        out.append(weights[:, :, :, i] @ u_BKCD[:, :, None] + read[:, :, :, i] @ S_BKED[:, :, None])
        S_BKED = c[:, :, i, -1:] * S_BKED + to_state[:, :, i] @ u_BKCD
    return torch.cat(out, dim=3)[:, :, :, :T], S_BKED
