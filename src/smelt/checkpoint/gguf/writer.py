"""Header, vocabulary and tensors into one file, a tensor in memory at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import gguf

    from smelt.checkpoint.gguf.header import Header
    from smelt.checkpoint.gguf.packed import Format, Packed, PackedTensors
    from smelt.checkpoint.gguf.vocabulary import Vocabulary

_FILE_TYPES = {
    "f32": "ALL_F32",
    "bf16": "MOSTLY_BF16",
    "f16": "MOSTLY_F16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """matrices: how many are in which format. kept: how many have the codes they came with."""

    matrices: dict[str, int]
    kept: int


def write_gguf(
    path: Path, header: Header, tensors: PackedTensors, vocabulary: Vocabulary | None, *, name: str, format: Format
) -> Written:
    """Write the file; `name` is what readers show, vocabulary None: it takes ids only. Needs the module gguf."""
    import gguf

    writer = gguf.GGUFWriter(path, header.architecture)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[format]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in header.keys.items():
        full = f"{header.architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        else:
            writer.add_float32(full, value)
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _add_vocabulary(writer, vocabulary)
    factors = None if header.frequency_factors is None else np.array(header.frequency_factors, np.float32)
    if factors is not None:
        writer.add_tensor_info(_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    matrices: Counter[str] = Counter()
    kept = 0
    for tensor in tensors:  # packed twice, here for what it is: the file says so before the first tensor
        packed = tensors[tensor]
        _announce(writer, tensor, packed)
        if packed.data.ndim == 2:
            matrices[packed.format] += 1
            kept += packed.kept
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for tensor in tensors:
        writer.write_tensor_data(np.ascontiguousarray(tensors[tensor].data))
    writer.close()
    return Written(matrices=dict(matrices), kept=kept)


def _announce(writer: gguf.GGUFWriter, name: str, packed: Packed) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType[packed.format.upper()]
    writer.add_tensor_info(name, packed.data.shape, packed.data.dtype, packed.data.nbytes, raw_dtype=kind)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    import gguf

    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([gguf.TokenType[kind.upper()] for kind in vocabulary.kinds])
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    keys = {"bos": "bos", "eos": "eos", "eot": "eot", "unk": "unknown", "pad": "padding"}
    for name, token_id in vocabulary.special_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{keys[name]}_token_id", token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
