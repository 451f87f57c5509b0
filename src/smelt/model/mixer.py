"""Linear attention as a part of a layer's attention: what it has beside q, k, v and o, and what it keeps of a sequence.

Queries and keys come as the family makes them, normed and rotated. Everything inside is at least float32.
Shapes: B rows, T tokens, H hidden width, N query heads, K key/value heads, G = N / K, D head width, F width of a map,
E features, R kept keys.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smelt.core.decoder import DecoderConfig, LinearConfig
from smelt.model import delta_attention, hybrid_attention
from smelt.model.attention import each_document
from smelt.model.rope import widened

State = tuple[Tensor, ...]
"""What a layer keeps of the tokens so far: tensors whose size has a bound that does not depend on their number."""

_WINDOW_LOGIT = -2.197  # sigmoid: 0.1, the published start
_DECAY_BIAS = math.log(math.expm1(0.01))  # a hundredth of the state is forgotten a token, before it learns


class Mixer(nn.Module, ABC):
    """One layer's linear attention. q_map, k_map: of each head, [N, F, D] and [K, F, D].

    without_linear and without_window switch a part off, to see what it is worth; neither is stored.
    """

    def __init__(self, config: DecoderConfig, linear: LinearConfig) -> None:
        super().__init__()
        self.without_linear = self.without_window = False
        self.num_states, self.window, self.scale = config.num_kv_heads, linear.window, config.attention_scale
        self.q_map = nn.Parameter(torch.zeros(config.num_heads, linear.feature_dim, config.head_dim))
        self.k_map = nn.Parameter(torch.zeros(config.num_kv_heads, linear.feature_dim, config.head_dim))

    def forward(
        self,
        x_BTH: Tensor,
        heads: tuple[Tensor, Tensor, Tensor],
        lengths: Sequence[Sequence[int]] | None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """[B, N, T, D] like the first of `heads` (q, k, v), and the state behind the last token.

        lengths: of each row's documents where they are packed; then no state comes in, and none comes out.
        """
        with torch.autocast(x_BTH.device.type, enabled=False):
            tensors = [widened(x) for x in (*heads, *self.gates(x_BTH))]
            if lengths is None:
                out, state = self.mixed(tensors, state)
            else:
                out, state = each_document(lengths, lambda *parts: self.mixed(parts, None)[0], tensors), ()
        return out.to(heads[0].dtype), state

    def gates(self, x_BTH: Tensor) -> tuple[Tensor, ...]:
        """What else depends on the token, time in the third place."""
        return ()

    @abstractmethod
    def mixed(self, tensors: Sequence[Tensor], state: State | None) -> tuple[Tensor, State]:
        """One document a row, from where `state` left off."""

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """Values to begin with."""

    def grouped(self, x_BNTX: Tensor) -> Tensor:
        """Query heads beside the key/value head they read: [B, N, T, X] to [B, K, G, T, X]."""
        return torch.unflatten(x_BNTX, 1, (self.num_states, -1))

    def _init_maps(self, generator: torch.Generator, size: float) -> None:
        """Each head's own numbers times `size`, then random mixtures of them where features are more."""
        for parameter in (self.q_map, self.k_map):
            heads, rows, width = parameter.shape
            drawn = torch.randn(parameter.shape, generator=generator) * width**-0.5
            drawn[:, :width] = torch.eye(rows, width)[:width]
            parameter.copy_(drawn * size)


class Hybrid(Mixer):
    """Softmax in a window, positive features behind it: softmax over Wx beside softmax over -Wx."""

    def __init__(self, config: DecoderConfig, linear: LinearConfig) -> None:
        super().__init__(config, linear)
        self.window_logit = nn.Parameter(torch.full((config.num_heads,), _WINDOW_LOGIT))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Maps whose products begin like the scores."""
        self.window_logit.fill_(_WINDOW_LOGIT)
        self._init_maps(generator, self.scale**0.5)

    def mixed(self, tensors: Sequence[Tensor], state: State | None) -> tuple[Tensor, State]:
        """The state: S, z, and the keys and values of the w - 1 newest tokens."""
        q_BNTD, k_BKLD, v_BKLD = tensors
        if state is not None:
            k_BKLD, v_BKLD = torch.cat((state[2], k_BKLD), dim=2), torch.cat((state[3], v_BKLD), dim=2)
        # No query here is far from the w - 1 newest keys: their features are left at zero.
        kept = max(0, k_BKLD.shape[2] - (self.window - 1))
        fk_BKLE = F.pad(_features(k_BKLD[:, :, :kept], self.k_map), (0, 0, 0, k_BKLD.shape[2] - kept))
        fq_BNTE = _features(q_BNTD, self.q_map)
        tokens = hybrid_attention.Tokens(
            self.grouped(q_BNTD),
            k_BKLD,
            v_BKLD,
            self.grouped(torch.zeros_like(fq_BNTE) if self.without_linear else fq_BNTE),
            fk_BKLE,
        )
        sums = hybrid_attention.Sums(*state[:2]) if state else hybrid_attention.Sums.nothing(tokens)
        weight_N = widened(self.window_logit).sigmoid() * (not self.without_window)
        blend = hybrid_attention.Blend(self.window, self.scale, torch.unflatten(weight_N, 0, (self.num_states, -1)))
        one = q_BNTD.shape[2] == 1
        form = hybrid_attention.recurrent if one else hybrid_attention.chunked
        after = sums.after(tokens, self.window)
        return form(tokens, sums, blend).flatten(1, 2), (
            after.values,
            after.features,
            k_BKLD[:, :, kept:],
            v_BKLD[:, :, kept:],
        )


class GatedDelta(Mixer):
    """A state that decays and is corrected by each token; `gain` scales each head's outputs."""

    def __init__(self, config: DecoderConfig, linear: LinearConfig) -> None:
        super().__init__(config, linear)
        self.decay = nn.Linear(config.hidden_size, config.num_kv_heads)
        self.write = nn.Linear(config.hidden_size, config.num_kv_heads)
        self.gain = nn.Parameter(torch.ones(config.num_heads))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """A long memory, every token half written, whatever the token."""
        for gate, bias in ((self.decay, _DECAY_BIAS), (self.write, 0.0)):
            gate.weight.zero_()
            gate.bias.fill_(bias)
        self.gain.fill_(1.0)
        self._init_maps(generator, 1.0)

    def gates(self, x_BTH: Tensor) -> tuple[Tensor, ...]:
        """Log of the decay and write strength of each token, [B, K, T] each."""
        x = widened(x_BTH)
        decay, write = (F.linear(x, widened(g.weight), widened(g.bias)) for g in (self.decay, self.write))
        return -F.softplus(decay).mT, write.sigmoid().mT

    def mixed(self, tensors: Sequence[Tensor], state: State | None) -> tuple[Tensor, State]:
        """The state: S alone."""
        q_BNTD, k_BKTD, v_BKTD, log_decay_BKT, write_BKT = tensors
        tokens = delta_attention.Tokens(
            self.grouped(_unit(q_BNTD, self.q_map)), _unit(k_BKTD, self.k_map), v_BKTD, log_decay_BKT, write_BKT
        )
        form = delta_attention.recurrent if q_BNTD.shape[2] == 1 else delta_attention.chunked
        out_BKGTD, S_BKED = form(tokens, state[0] if state else tokens.nothing())
        gain_N = widened(self.gain) * (not self.without_linear)
        return out_BKGTD.flatten(1, 2) * gain_N[:, None, None], (S_BKED,)


def make_mixer(config: DecoderConfig, layer: int) -> Mixer | None:
    """Of a linear layer, with torch's default weights; None for softmax."""
    linear = config.layers[layer].linear
    if linear is None:
        return None
    return Hybrid(config, linear) if linear.kind == "hybrid" else GatedDelta(config, linear)


def _mapped(x_BhTD: Tensor, map_hFD: Tensor) -> Tensor:
    return x_BhTD @ widened(map_hFD).mT


def _features(x_BhTD: Tensor, map_hFD: Tensor) -> Tensor:
    """[B, h, T, 2 F], positive, with a sum of 2."""
    mapped = _mapped(x_BhTD, map_hFD)
    return torch.cat((mapped.softmax(-1), (-mapped).softmax(-1)), dim=-1)


def _unit(x_BhTD: Tensor, map_hFD: Tensor) -> Tensor:
    """[B, h, T, F] of length 1."""
    return F.normalize(_mapped(x_BhTD, map_hFD), dim=-1)
