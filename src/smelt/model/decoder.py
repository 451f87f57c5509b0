"""The decoder: Llama, Mistral, Qwen2, Qwen3 and Gemma 3 text in one module, by configuration.

Parameter names are those of the Hugging Face folders. Shapes: B batch, T time, H hidden width, N heads,
K key/value heads, D head width, L keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smelt.core.decoder import DecoderConfig
from smelt.model.attention import Attend, Causal, attends, document_lengths, places_in_documents
from smelt.model.cache import Cache
from smelt.model.mixer import Mixer, make_mixer
from smelt.model.rope import Rope, rotate, widened
from smelt.model.sharing import Entry, borrow_matrices, make_residue, projected

PRIVILEGES = "model.embed_privileges.weight"


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) with gain `offset + weight`; at least float32 inside."""

    def __init__(self, width: int, config: DecoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - config.norm_offset))
        self.eps, self.offset = config.norm_eps, config.norm_offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = widened(x)
        gain = self.weight.to(wide.dtype)
        return F.rms_norm(wide, (x.shape[-1],), gain + self.offset if self.offset else gain, self.eps).to(x.dtype)


@dataclass(frozen=True, slots=True)
class View:
    """What a layer needs to know of the batch: rotary angles, and who sees whom.

    lengths: of each row's documents where they are packed, for linear layers.
    """

    cos: Tensor
    sin: Tensor
    attend: Attend
    lengths: tuple[tuple[int, ...], ...] | None = None


class Attention(nn.Module):
    """Grouped-query attention with optional biases and QK-norm, by softmax or (with a mixer) linear."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        hidden, D = config.hidden_size, config.head_dim
        self.layer, self.head_dim, self.scale = layer, D, config.attention_scale
        self.q_proj = nn.Linear(hidden, config.num_heads * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden, config.num_kv_heads * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden, config.num_kv_heads * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * D, hidden, bias=config.o_bias)
        self.q_norm = Norm(D, config) if config.qk_norm else None
        self.k_norm = Norm(D, config) if config.qk_norm else None
        rank = config.layers[layer].residue_rank
        self.q_residue, self.k_residue = make_residue(self.q_proj, rank), make_residue(self.k_proj, rank)
        self.v_residue, self.o_residue = make_residue(self.v_proj, rank), make_residue(self.o_proj, rank)
        self.mixer = make_mixer(config, layer)

    def forward(self, x_BTH: Tensor, view: View, cache: Cache | None) -> Tensor:
        """Attend; appends to the cache where there is one."""
        q_BNTD, k_BKTD, v_BKTD = self._heads(x_BTH, view)
        if self.mixer is not None:
            out_BNTD = self._linear(self.mixer, x_BTH, (q_BNTD, k_BKTD, v_BKTD), view, cache)
        else:
            if cache is not None:
                k_BKTD, v_BKTD = cache.append(self.layer, k_BKTD, v_BKTD)
            out_BNTD = view.attend(q_BNTD, k_BKTD, v_BKTD, self.scale)
        return projected(self.o_proj, self.o_residue, out_BNTD.transpose(1, 2).flatten(2))

    def _linear(
        self, mixer: Mixer, x_BTH: Tensor, heads: tuple[Tensor, Tensor, Tensor], view: View, cache: Cache | None
    ) -> Tensor:
        """[B, N, T, D], from the cache's state on where there is one."""
        out_BNTD, state = mixer(x_BTH, heads, view.lengths, None if cache is None else cache.state(self.layer))
        if cache is not None:
            cache.keep(self.layer, state)
        return cast(Tensor, out_BNTD)

    def _heads(self, x_BTH: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, D], keys and values [B, K, T, D], normed and rotated."""
        B, T, _ = x_BTH.shape
        q_BTND = projected(self.q_proj, self.q_residue, x_BTH).view(B, T, -1, self.head_dim)
        k_BTKD = projected(self.k_proj, self.k_residue, x_BTH).view(B, T, -1, self.head_dim)
        v_BTKD = projected(self.v_proj, self.v_residue, x_BTH).view(B, T, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTND, k_BTKD = self.q_norm(q_BTND), self.k_norm(k_BTKD)
        q_BNTD = rotate(q_BTND.transpose(1, 2), view.cos, view.sin)
        k_BKTD = rotate(k_BTKD.transpose(1, 2), view.cos, view.sin)
        return q_BNTD, k_BKTD, v_BTKD.transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU or GeGLU (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        rank = config.layers[layer].residue_rank
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.gate_residue, self.up_residue = make_residue(self.gate_proj, rank), make_residue(self.up_proj, rank)
        self.down_residue = make_residue(self.down_proj, rank)
        self.silu = config.activation == "silu"

    def forward(self, x_BTH: Tensor) -> Tensor:
        """[B, T, H] to [B, T, H]."""
        gate = projected(self.gate_proj, self.gate_residue, x_BTH)
        gate = F.silu(gate) if self.silu else F.gelu(gate, approximate="tanh")
        return projected(self.down_proj, self.down_residue, gate * projected(self.up_proj, self.up_residue, x_BTH))


class Layer(nn.Module):
    """Attention and MLP on the residual stream, each behind a norm, and in front of one where Gemma has it."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.entry = Entry(hidden) if config.layers[index].entry_bias else None
        self.input_layernorm = Norm(hidden, config)
        self.self_attn = Attention(config, index)
        # The same name for two things: Llama's norm in front of the MLP, Gemma's behind the attention.
        self.post_attention_layernorm = Norm(hidden, config)
        self.pre_feedforward_layernorm = Norm(hidden, config) if config.post_norms else None
        self.post_feedforward_layernorm = Norm(hidden, config) if config.post_norms else None
        self.mlp = MLP(config, index)

    def forward(self, x_BTH: Tensor, view: View, cache: Cache | None = None) -> Tensor:
        """One layer of the residual stream."""
        if self.entry is not None:
            x_BTH = self.entry(x_BTH)
        attended = self.self_attn(self.input_layernorm(x_BTH), view, cache)
        if self.pre_feedforward_layernorm is None or self.post_feedforward_layernorm is None:
            x_BTH = x_BTH + attended
            return cast(Tensor, x_BTH + self.mlp(self.post_attention_layernorm(x_BTH)))
        x_BTH = x_BTH + self.post_attention_layernorm(attended)
        fed = self.mlp(self.pre_feedforward_layernorm(x_BTH))
        return cast(Tensor, x_BTH + self.post_feedforward_layernorm(fed))


class Body(nn.Module):
    """Everything below the head; named `model` in a folder."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        known = config.num_privileges
        self.embed_privileges = nn.Embedding(known, config.hidden_size) if known else None
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        for layer, shape in zip(self.layers, config.layers, strict=True):
            if shape.weights is not None:
                borrow_matrices(layer, self.layers[shape.weights])
        self.norm = Norm(config.hidden_size, config)


class Decoder(nn.Module):
    """A decoder of shape `config`, with torch's default weights: call `init_weights` or use `from_tensors`.

    checkpoint_layers: training keeps only what enters each layer, and computes the rest again on the way back
    (Chen et al. 2016, arXiv:1604.06174): a third more work, and memory for one layer instead of all.
    """

    def __init__(self, config: DecoderConfig, *, checkpoint_layers: bool = False) -> None:
        super().__init__()
        self.config, self.checkpoint_layers = config, checkpoint_layers
        self.model = Body(config)
        head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head = head
        self.ropes = nn.ModuleList(Rope(rope, config.head_dim) for rope in config.ropes)

    @classmethod
    def from_tensors(cls, config: DecoderConfig, tensors: Mapping[str, NDArray[np.float32]]) -> Self:
        """A decoder with the weights of an opened checkpoint, copied, in float32."""
        decoder = cls(config)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                parameter.copy_(torch.from_numpy(np.array(tensors[name], dtype=np.float32)))
        return decoder

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The weights by name, float32 on the CPU, in the order of `config.tensor_shapes()`; what a save takes."""
        named = dict(self.named_parameters())
        return {name: named[name].detach().float().cpu().numpy() for name in self.config.tensor_shapes()}

    def forward(
        self,
        ids_BT: Tensor,
        *,
        positions: Tensor | None = None,
        segment_ids_BT: Tensor | None = None,
        privileges_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits [B, T, V]; see `hidden`."""
        hidden_BTH = self.hidden(
            ids_BT, positions=positions, segment_ids_BT=segment_ids_BT, privileges_BT=privileges_BT, cache=cache
        )
        return self.logits(hidden_BTH)

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        positions: Tensor | None = None,
        segment_ids_BT: Tensor | None = None,
        privileges_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states behind the final norm, [B, T, H].

        positions: rotary positions, [T] or [B, T]; by default 0, 1, ... behind what the cache holds, and from 0 in
        each packed document. segment_ids_BT: a row's documents, each one run of equal ids, with padding (-1) at the
        end: tokens see only earlier tokens of their own document, and nothing of one document reaches another's
        hidden states. privileges_BT: who said each token, where the model has `num_privileges`, and only there.
        cache: computes the tokens behind the cached ones and adds them.
        Raises ValueError for segments together with a cache, a full cache, a document in two pieces, or privileges
        that are missing or not asked for.
        """
        if cache is not None and segment_ids_BT is not None:
            raise ValueError("packed segments are for training; a cache holds one document per row")
        T = ids_BT.shape[1]
        if cache is not None:
            cache.reserve(T)
        x_BTH, views = self.entered(
            ids_BT,
            positions=positions,
            segment_ids_BT=segment_ids_BT,
            privileges_BT=privileges_BT,
            past=0 if cache is None else cache.length,
        )
        for layer, view in zip(self.model.layers, views, strict=True):
            if self.checkpoint_layers and cache is None and torch.is_grad_enabled():
                x_BTH = checkpoint(layer, x_BTH, view, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BTH = layer(x_BTH, view, cache)
        if cache is not None:
            cache.advance(T)
        return cast(Tensor, self.model.norm(x_BTH))

    def entered(
        self,
        ids_BT: Tensor,
        *,
        positions: Tensor | None = None,
        segment_ids_BT: Tensor | None = None,
        privileges_BT: Tensor | None = None,
        past: int = 0,
    ) -> tuple[Tensor, tuple[View, ...]]:
        """What enters the first layer, [B, T, H], and the view of each layer, so that layers can be run one by one.

        past: tokens a cache holds before these. The rest as in `hidden`, which goes on from here.
        """
        T = ids_BT.shape[1]
        if positions is None and segment_ids_BT is not None:
            positions = places_in_documents(segment_ids_BT)
        elif positions is None:
            positions = torch.arange(past, past + T, device=ids_BT.device)
        x_BTH = self._embedded(ids_BT, privileges_BT)
        views = self._views(positions, past, segment_ids_BT, x_BTH)
        return x_BTH, tuple(views[shape.rope, shape.window, shape.linear is not None] for shape in self.config.layers)

    def _embedded(self, ids_BT: Tensor, privileges_BT: Tensor | None) -> Tensor:
        """Tokens, and who said them where the model knows that, as the residual stream begins."""
        x_BTH: Tensor = self.model.embed_tokens(ids_BT)
        if self.config.embedding_scale != 1.0:
            x_BTH = x_BTH * self.config.embedding_scale
        said = self.model.embed_privileges
        if (said is None) != (privileges_BT is None):
            has, found = ("no" if said is None else "a"), ("none" if privileges_BT is None else "some")
            raise ValueError(f"the model has {has} table of privileges: sought privileges to match, found {found}")
        if said is not None and privileges_BT is not None:
            x_BTH = x_BTH + said(privileges_BT.long())
        return x_BTH

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., V]; apart from `hidden` so that a loss can go over the tokens in pieces."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """[V, H]: the head's matrix, which is the embedding's where they are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def _views(
        self, positions: Tensor, past: int, segment_ids_BT: Tensor | None, like: Tensor
    ) -> dict[tuple[int, int | None, bool], View]:
        """One view per kind of layer, so that angles and masks are made once and not per layer."""
        angles = [rope(positions) for rope in self.ropes]
        kinds = {(layer.rope, layer.window, layer.linear is not None) for layer in self.config.layers}
        attend = attends((window for _, window, linear in kinds if not linear), past, segment_ids_BT, like)
        packed = segment_ids_BT is not None and any(linear for _, _, linear in kinds)
        lengths = document_lengths(segment_ids_BT) if packed and segment_ids_BT is not None else None
        return {
            kind: View(
                cos=angles[kind[0]][0],
                sin=angles[kind[0]][1],
                attend=Causal() if kind[2] else attend[kind[1]],
                lengths=lengths if kind[2] else None,
            )
            for kind in kinds
        }

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, the same for a seed on every device.

        Matrices: normal with std fan_in^-1/2, so that widths change nothing; embeddings and head half of that, so
        that first predictions are near uniform. What a layer adds to the residual stream is scaled by
        (2 * layers)^-1/2 (Radford et al. 2019): in the matrix, or in the gain of the norm behind it where there
        is one, as that norm would undo the former. Other gains 1, biases, privileges and residues 0: what was added
        changes nothing until it has learned something. Linear attention begins as its mixer says.
        """
        generator = torch.Generator().manual_seed(seed)
        depth = (2 * self.config.num_layers) ** -0.5
        post_norms = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
        for module in self.modules():
            if isinstance(module, Mixer):
                module.init_weights(generator)
        for name, parameter in self.named_parameters():
            if ".mixer." in name:
                continue
            if name.endswith((".bias", "_residue.expand")) or name == PRIVILEGES:
                parameter.zero_()
            elif parameter.ndim == 1:
                damped = self.config.post_norms and name.endswith(post_norms)
                parameter.fill_((depth if damped else 1.0) - self.config.norm_offset)
            else:
                std = parameter.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")) and not self.config.post_norms:
                    std *= depth
                if name in ("model.embed_tokens.weight", "lm_head.weight"):
                    std *= 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
