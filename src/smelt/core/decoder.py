"""The shape of a decoder, as plain values: the word that `checkpoint`, `native`, `model` and `train` share.

One configuration covers Llama, Mistral, Qwen2/2.5, Qwen3 and Gemma 3 text. Tensor names are those of the
Hugging Face folder (`model.layers.{i}.self_attn.q_proj.weight`, ...), which all five families share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """One rotary embedding. `scaling` follows transformers' names; fields of other kinds are ignored.

    default: inv_freq[i] = base^(-2i/d). linear: divided by factor. llama3: frequencies by wavelength band.
    yarn: NTK-by-parts interpolation with attention factor (Peng et al. 2023, arXiv:2309.00071).
    """

    base: float = 10000.0
    scaling: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def inv_freq(self, head_dim: int) -> list[float]:
        """Rotation frequencies in radians per position; `head_dim // 2` values."""
        plain = [self.base ** (-2.0 * i / head_dim) for i in range(head_dim // 2)]
        if self.scaling == "linear":
            return [f / self.factor for f in plain]
        if self.scaling == "llama3":
            return [self._llama3(f) for f in plain]
        if self.scaling == "yarn":
            return self._yarn(plain, head_dim)
        return plain

    def _llama3(self, f: float) -> float:
        wavelength = 2 * math.pi / f
        if wavelength < self.original_max_position / self.high_freq_factor:
            return f
        if wavelength > self.original_max_position / self.low_freq_factor:
            return f / self.factor
        smooth = (self.original_max_position / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        return (1 - smooth) * f / self.factor + smooth * f

    def _yarn(self, plain: list[float], head_dim: int) -> list[float]:
        def correction(num_rotations: float) -> float:
            return (head_dim * math.log(self.original_max_position / (num_rotations * 2 * math.pi))) / (
                2 * math.log(self.base)
            )

        low, high = correction(self.beta_fast), correction(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = max(high - low, 0.001)
        ramp = [min(max((i - low) / width, 0.0), 1.0) for i in range(head_dim // 2)]
        return [f / self.factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]

    def cos_sin_factor(self) -> float:
        """What cos and sin are multiplied with (YaRN's attention factor; 1 for every other kind)."""
        if self.scaling != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor

        def mscale(weight: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return mscale(self.mscale) / mscale(self.mscale_all_dim)
        return mscale(1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerConfig:
    """What differs between layers: `window` tokens visible (None: all before), `rope` index into `ropes`.

    A window of w lets position p see positions p-w+1 .. p.
    """

    window: int | None = None
    rope: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Everything that decides a decoder's arithmetic.

    `norm_offset`: RMSNorm multiplies by (norm_offset + weight): 1 for Gemma, 0 otherwise.
    `post_norms`: Gemma's second pair of norms, on the outputs of attention and MLP.
    `embedding_scale` multiplies embeddings on the way in; `attention_scale` multiplies q.k.
    `num_privileges`: 0, or the rows of a table that adds to each embedded token who said it, a row per
    `core.messages.Privilege` value (ISE, Wu et al. 2024, arXiv:2410.09102); no other reader knows such a model.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    ropes: tuple[RopeConfig, ...] = (RopeConfig(),)
    context_len: int = 2048
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    activation: Literal["silu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    tie_embeddings: bool = True
    embedding_scale: float = 1.0
    attention_scale: float = 1.0
    num_privileges: int = 0
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def num_parameters(self) -> int:
        """Parameters, counting tied embeddings once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values one token occupies in fp32, over all layers."""
        return 2 * 4 * self.num_layers * self.num_kv_heads * self.head_dim

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor a checkpoint of this shape holds, by Hugging Face name; weights are [out, in]."""
        hidden, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        if self.num_privileges:
            shapes["model.embed_privileges.weight"] = (self.num_privileges, hidden)
        for i in range(self.num_layers):
            p = f"model.layers.{i}."
            shapes[p + "input_layernorm.weight"] = (hidden,)
            for name, width in (("q", q), ("k", kv), ("v", kv)):
                shapes[f"{p}self_attn.{name}_proj.weight"] = (width, hidden)
                if self.qkv_bias:
                    shapes[f"{p}self_attn.{name}_proj.bias"] = (width,)
            if self.qk_norm:
                shapes[p + "self_attn.q_norm.weight"] = (self.head_dim,)
                shapes[p + "self_attn.k_norm.weight"] = (self.head_dim,)
            shapes[p + "self_attn.o_proj.weight"] = (hidden, q)
            if self.o_bias:
                shapes[p + "self_attn.o_proj.bias"] = (hidden,)
            shapes[p + "post_attention_layernorm.weight"] = (hidden,)
            if self.post_norms:
                shapes[p + "pre_feedforward_layernorm.weight"] = (hidden,)
                shapes[p + "post_feedforward_layernorm.weight"] = (hidden,)
            for name, (rows, cols) in (
                ("gate", (inner, hidden)),
                ("up", (inner, hidden)),
                ("down", (hidden, inner)),
            ):
                shapes[f"{p}mlp.{name}_proj.weight"] = (rows, cols)
                if self.mlp_bias:
                    shapes[f"{p}mlp.{name}_proj.bias"] = (rows,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes
