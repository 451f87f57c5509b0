"""The weights of a decoder as tensors of a GGUF file, packed when they are asked for.

Matrices that are in few bits already keep their codes where GGUF has a form for them: no second rounding. GGUF's blocks
of 32 share a float16 scale, and hold codes -8..7 (Q4_0) or -128..127 (Q8_0); a longer group repeats its scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from smelt.core.decoder import DecoderConfig

if TYPE_CHECKING:
    import gguf
    from numpy.typing import NDArray

    from smelt.checkpoint.gguf.header import Header
    from smelt.checkpoint.quantized import QuantizedWeight

Format = Literal["f32", "bf16", "f16", "q8_0", "q4_0"]
FORMATS: tuple[Format, ...] = get_args(Format)
BLOCK = 32
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_OUTSIDE = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """data: as the file holds it, rows of bytes for blocks and bf16. kept: its codes are the source's own."""

    format: Format
    data: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint8]
    kept: bool = False


class PackedTensors(Mapping[str, Packed]):
    """The tensors of a GGUF file by its names, in order, each packed by every access.

    `sources` has each one's name in a folder.
    """

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Mapping[str, NDArray[np.float32]],
        quantized: Mapping[str, QuantizedWeight],
        *,
        format: Format,
        header: Header,
    ) -> None:
        self._config, self._tensors, self._quantized = config, tensors, quantized
        self._format, self._header = format, header
        self.sources = {file_name(name, config): name for name in config.tensor_shapes()}

    def __iter__(self) -> Iterator[str]:
        yield from self.sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, name: str) -> Packed:
        source = self.sources[name]
        if len(self._config.tensor_shapes()[source]) == 1:
            return Packed(format="f32", data=self._vector(source))
        packed = self._matrix(source)
        order = self._rotary_order(source)
        return packed if order is None else Packed(format=packed.format, data=packed.data[order], kept=packed.kept)

    def meaning(self, source: str) -> NDArray[np.float32]:
        """A tensor, by its folder's name, as what the file's numbers stand for, in the folder's own layout."""
        if len(self._config.tensor_shapes()[source]) == 1:
            return self._tensors[source]
        return unpacked(self._matrix(source))

    def _vector(self, source: str) -> NDArray[np.float32]:
        values = np.asarray(self._tensors[source], np.float32)
        if source.endswith("norm.weight"):
            values = (values.astype(np.float64) + self._config.norm_offset).astype(np.float32)
        if source.endswith("self_attn.q_norm.weight"):  # a gain on queries is a factor on all their scores
            values = (values.astype(np.float64) * self._header.query_gain).astype(np.float32)
        order = self._rotary_order(source)
        return values if order is None else values[order]

    def _matrix(self, source: str) -> Packed:
        wanted = self._format
        if wanted == "q4_0" and (source == HEAD or (source == EMBEDDING and self._config.tie_embeddings)):
            wanted = "q8_0"  # 4 bits cost the head most and save least; llama.cpp's own files keep 6 bits there
        weight = self._quantized.get(source)
        if weight is not None and wanted in ("q8_0", "q4_0"):
            found = blocks_of(weight)
            if found is not None and (found.format, wanted) != ("q8_0", "q4_0"):
                return found
        return pack(np.asarray(self._tensors[source], np.float32), wanted)

    def _rotary_order(self, source: str) -> NDArray[np.intp] | None:
        """Rows of q and k in llama.cpp's llama: pairs that turn together lie side by side, not in halves."""
        stem = source.removesuffix(".weight").removesuffix(".bias")
        if self._config.family not in ("llama", "mistral") or not stem.endswith(
            ("self_attn.q_proj", "self_attn.k_proj")
        ):
            return None
        heads = self._config.num_heads if stem.endswith("q_proj") else self._config.num_kv_heads
        rows = np.arange(heads * self._config.head_dim).reshape(heads, 2, self._config.head_dim // 2)
        return rows.swapaxes(1, 2).reshape(-1)


def file_name(source: str, config: DecoderConfig) -> str:
    """llama.cpp's name of a folder's tensor."""
    if source in _OUTSIDE:
        return _OUTSIDE[source]
    _, _, layer, rest = source.split(".", 3)
    stem, _, what = rest.rpartition(".")
    names = _INSIDE | _GEMMA if config.post_norms else _INSIDE
    return f"blk.{layer}.{names[stem]}.{what}"


def pack(weight: NDArray[np.float32], format: Format) -> Packed:
    """A matrix in `format`; in f16 where its width is no multiple of 32 and the format has blocks."""
    import gguf

    if format in ("q8_0", "q4_0") and weight.shape[1] % BLOCK:
        format = "f16"
    if format == "f32":
        return Packed(format=format, data=weight)
    if format == "f16":
        return Packed(format=format, data=np.clip(weight, -65504.0, 65504.0).astype(np.float16))
    return Packed(format=format, data=gguf.quants.quantize(weight, _type(format)))


def unpacked(packed: Packed) -> NDArray[np.float32]:
    """What packed numbers stand for, [O, I], by the library's own rule."""
    import gguf

    if packed.format in ("f32", "f16"):
        return packed.data.astype(np.float32)
    found: NDArray[np.float32] = gguf.quants.dequantize(packed.data, _type(packed.format))
    return found


def _type(format: Format) -> gguf.GGMLQuantizationType:
    import gguf

    return gguf.GGMLQuantizationType[format.upper()]


def blocks_of(weight: QuantizedWeight) -> Packed | None:
    """The same numbers in blocks, to the bit; None where GGUF's blocks cannot hold them.

    Held are groups of a multiple of 32 inputs (a whole row too), scales that float16 holds, and codes that, less their
    zero point, fit the block.
    """
    rows, width = weight.codes.shape
    group = weight.format.group_size or width
    if width % BLOCK or group % BLOCK:
        return None
    scales = np.repeat(weight.scales, group // BLOCK, axis=1)[:, : width // BLOCK]
    halves = scales.astype(np.float16)
    codes = weight.codes.astype(np.int16)
    if weight.zeros is not None:
        codes -= np.repeat(weight.zeros.astype(np.int16), group, axis=1)[:, :width]
    if not np.array_equal(halves.astype(np.float32), scales) or codes.min() < -128 or codes.max() > 127:
        return None
    scale_bytes = halves[..., None].view(np.uint8)
    blocks = codes.reshape(rows, -1, BLOCK)
    if codes.min() >= -8 and codes.max() <= 7 and weight.format.bits <= 4:
        shifted = (blocks + 8).astype(np.uint8)
        pairs = shifted[..., : BLOCK // 2] | (shifted[..., BLOCK // 2 :] << 4)
        return Packed(format="q4_0", data=np.concatenate([scale_bytes, pairs], -1).reshape(rows, -1), kept=True)
    whole = blocks.astype(np.int8).view(np.uint8)
    return Packed(format="q8_0", data=np.concatenate([scale_bytes, whole], -1).reshape(rows, -1), kept=True)
