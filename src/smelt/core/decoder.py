"""The shape of a decoder, as plain values: the word that `checkpoint`, `native`, `model` and `train` share.

One configuration covers Llama, Mistral, Qwen2/2.5, Qwen3 and Gemma 3 text. Tensor names are those of the
Hugging Face folder (`model.layers.{i}.self_attn.q_proj.weight`, ...), which all five families share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]

# The matrices of a layer: `{stem}_proj` is the matrix, `{stem}_residue` what a sharing layer adds to it.
MATRICES = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")


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
class LinearConfig:
    """Linear attention in place of softmax attention: a state of fixed size instead of a key and a value per token.

    kind "hybrid" (LoLCATs, Zhang et al. 2024, arXiv:2410.10254): softmax over the last `window` tokens and linear
    attention on all older ones, under one denominator; each head maps D numbers to 2 `feature_dim` positive features.
    kind "gated delta" (Yang et al. 2024, arXiv:2412.06464): a state per key/value head that decays and is corrected
    by each token; heads map D numbers to `feature_dim`. It has no window.
    """

    kind: Literal["hybrid", "gated delta"] = "hybrid"
    window: int = 64
    feature_dim: int = 64

    def state_size(self, head_dim: int) -> int:
        """Numbers that one key/value head keeps of a sequence of any length."""
        if self.kind == "gated delta":
            return self.feature_dim * head_dim
        return 2 * self.feature_dim * (head_dim + 1) + 2 * (self.window - 1) * head_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerConfig:
    """What differs between layers: `window` tokens visible (None: all before), `rope` index into `ropes`.

    A window of w lets position p see positions p-w+1 .. p.

    weights: the earlier layer whose matrices this one computes with; None: its own. Norms, biases, keys and values
    are each layer's own in any case. residue_rank: the layer adds to each of its matrices a product of its own,
    [out, r] by [r, in] (0: none; r is at most the matrix's smaller side). entry_bias: a learned vector is added to
    the residual stream in front of the layer, so that the passes of a loop can tell themselves apart.

    linear: how the layer attends instead of by softmax over all before it; None: by softmax.
    """

    window: int | None = None
    rope: int = 0
    weights: int | None = None
    residue_rank: int = 0
    entry_bias: bool = False
    linear: LinearConfig | None = None

    @property
    def plain(self) -> bool:
        """Whether other readers of its family know such a layer."""
        return self.weights is None and not self.residue_rank and not self.entry_bias and self.linear is None


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

    def __post_init__(self) -> None:
        """Raises ValueError for layers that cannot be, such as one that borrows matrices from where there are none."""
        for i, layer in enumerate(self.layers):
            home = layer.weights
            if home is not None and not (0 <= home < i and self.layers[home].weights is None):
                raise ValueError(f"layer {i} uses the weights of layer {home}; sought an earlier layer with its own")
            if layer.residue_rank < 0:
                raise ValueError(f"layer {i} has residue_rank {layer.residue_rank}; sought 0 or more")
            if layer.linear is not None and layer.window is not None:
                raise ValueError(f"layer {i} slides over {layer.window} tokens and is linear; sought one of the two")
            if layer.linear is not None and min(layer.linear.window, layer.linear.feature_dim) < 1:
                raise ValueError(f"layer {i} has {layer.linear}; sought a window and features, 1 or more of each")

    @property
    def num_layers(self) -> int:
        """Number of decoder layers that run; those that share matrices count each."""
        return len(self.layers)

    def home(self, layer: int) -> int:
        """The layer under whose name the matrices of `layer` are stored; itself where it shares none."""
        weights = self.layers[layer].weights
        return layer if weights is None else weights

    @property
    def plain(self) -> bool:
        """Whether other readers of the family compute this model: no privileges, no variant of ours in any layer."""
        return not self.num_privileges and all(layer.plain for layer in self.layers)

    @property
    def num_parameters(self) -> int:
        """Parameters, counting tied embeddings and shared matrices once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values one token occupies in fp32, over all layers but linear ones."""
        num_layers = sum(layer.linear is None for layer in self.layers)
        return 2 * 4 * num_layers * self.num_kv_heads * self.head_dim

    @property
    def state_bytes(self) -> int:
        """Bytes in fp32 of what linear layers keep of one sequence, however long; 0 without such layers."""
        sizes = (layer.linear.state_size(self.head_dim) for layer in self.layers if layer.linear is not None)
        return 4 * self.num_kv_heads * sum(sizes)

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """[out, in] of each of `MATRICES`, the same in every layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        sizes = (
            (q, hidden),
            (kv, hidden),
            (kv, hidden),
            (hidden, q),
            (inner, hidden),
            (inner, hidden),
            (hidden, inner),
        )
        return dict(zip(MATRICES, sizes, strict=True))

    def has_bias(self, stem: str) -> bool:
        """Whether the matrix of that stem has a bias."""
        if stem.startswith("mlp."):
            return self.mlp_bias
        return self.o_bias if stem == "self_attn.o" else self.qkv_bias

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor a checkpoint of this shape holds, by Hugging Face name; weights are [out, in].

        Shared matrices are there once, under the name of the first layer that uses them.
        """
        hidden = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        if self.num_privileges:
            shapes["model.embed_privileges.weight"] = (self.num_privileges, hidden)
        for i in range(self.num_layers):
            shapes |= self._layer_shapes(i)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def _layer_shapes(self, i: int) -> dict[str, tuple[int, ...]]:
        hidden, p = self.hidden_size, f"model.layers.{i}."
        shapes: dict[str, tuple[int, ...]] = {}
        if self.layers[i].entry_bias:
            shapes[p + "entry.bias"] = (hidden,)
        shapes[p + "input_layernorm.weight"] = (hidden,)
        for stem in MATRICES[:3]:
            shapes |= self._matrix_tensors(i, stem)
        if self.qk_norm:
            shapes[p + "self_attn.q_norm.weight"] = (self.head_dim,)
            shapes[p + "self_attn.k_norm.weight"] = (self.head_dim,)
        shapes |= self._mixer_shapes(i)
        shapes |= self._matrix_tensors(i, "self_attn.o")
        shapes[p + "post_attention_layernorm.weight"] = (hidden,)
        if self.post_norms:
            shapes[p + "pre_feedforward_layernorm.weight"] = (hidden,)
            shapes[p + "post_feedforward_layernorm.weight"] = (hidden,)
        for stem in MATRICES[4:]:
            shapes |= self._matrix_tensors(i, stem)
        return shapes

    def _mixer_shapes(self, i: int) -> dict[str, tuple[int, ...]]:
        """What a linear layer has beside its matrices: maps of features a head, and what weighs or gates them."""
        linear = self.layers[i].linear
        if linear is None:
            return {}
        p, hidden, num_states = f"model.layers.{i}.self_attn.mixer.", self.hidden_size, self.num_kv_heads
        shapes: dict[str, tuple[int, ...]] = {
            p + "q_map": (self.num_heads, linear.feature_dim, self.head_dim),
            p + "k_map": (num_states, linear.feature_dim, self.head_dim),
        }
        if linear.kind == "hybrid":
            return shapes | {p + "window_logit": (self.num_heads,)}
        for gate in ("decay", "write"):
            shapes |= {f"{p}{gate}.weight": (num_states, hidden), f"{p}{gate}.bias": (num_states,)}
        return shapes | {p + "gain": (self.num_heads,)}

    def _matrix_tensors(self, i: int, stem: str) -> dict[str, tuple[int, ...]]:
        """What layer `i` stores of one matrix: itself where it is the layer's own, its bias, its residue."""
        rows, cols = self.matrix_shapes()[stem]
        path = f"model.layers.{i}.{stem}"
        shapes: dict[str, tuple[int, ...]] = {}
        if self.layers[i].weights is None:
            shapes[path + "_proj.weight"] = (rows, cols)
        if self.has_bias(stem):
            shapes[path + "_proj.bias"] = (rows,)
        if rank := min(self.layers[i].residue_rank, rows, cols):
            shapes[path + "_residue.reduce"] = (rank, cols)
            shapes[path + "_residue.expand"] = (rows, rank)
        return shapes
