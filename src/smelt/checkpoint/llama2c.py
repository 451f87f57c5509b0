"""llama2.c's files to a folder: the legacy (version 0) weight export and its tokenizer.bin.

The export is a header of seven int32, then float32 tensors in a fixed order, then two tables of rotary
cosines and sines that nobody needs. Its attention turns neighbouring pairs (2i, 2i+1) of a head; Hugging Face
layouts turn (i, i + half), so the rows of q and k are put in that order.
Format: `legacy_export` in export.py and `memory_map_weights` in run.c of the llama2.c project.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smelt.checkpoint.folder import save_checkpoint
from smelt.core.decoder import DecoderConfig, LayerConfig
from smelt.core.errors import CheckpointError

F32 = NDArray[np.float32]

BOS_ID, EOS_ID = 1, 2
_HEADER = struct.Struct("<7i")
_FIRST_TEXT_ID = 259  # behind <unk>, <s>, </s> and the 256 bytes
_SPACE = "\u2581"  # SentencePiece's visible space


def convert(model_bin: Path, tokenizer_bin: Path, folder: Path) -> None:
    """Write a Hugging Face folder for a llama2.c model. Raises CheckpointError when a file is not what it should be."""
    config, tensors = read_model(model_bin)
    scored = read_tokenizer(tokenizer_bin, config.vocab_size)
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, **named}
    documents = {"tokenizer.json": tokenizer_json(scored), "tokenizer_config.json": settings}
    files = {name: json.dumps(document, ensure_ascii=False).encode() for name, document in documents.items()}
    save_checkpoint(folder, config, tensors, files=files)


def read_model(path: Path) -> tuple[DecoderConfig, dict[str, F32]]:
    """The shape and the tensors, by Hugging Face name, of a version 0 export."""
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        raise CheckpointError(f"{path.name}: {len(data)} bytes, too short for a llama2.c export")
    dim, inner, num_layers, num_heads, num_kv_heads, vocab, context_len = _HEADER.unpack_from(data)
    tied, vocab = vocab > 0, abs(vocab)
    sizes = (dim, inner, num_layers, num_heads, num_kv_heads, vocab, context_len)
    if min(sizes) < 1 or max(sizes) > 1 << 24 or dim % (2 * num_heads) or num_heads % num_kv_heads:
        raise CheckpointError(f"{path.name}: {sizes} is no llama2.c header")
    head_dim = dim // num_heads
    config = DecoderConfig(
        family="llama",
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=inner,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layers=(LayerConfig(),) * num_layers,
        context_len=context_len,
        norm_eps=1e-5,
        tie_embeddings=tied,
        attention_scale=head_dim**-0.5,
        bos_id=BOS_ID,
        eos_ids=(BOS_ID, EOS_ID),  # its training data has <s> between documents, and run.c stops there
    )
    num_values = config.num_parameters + context_len * head_dim
    if len(data) != _HEADER.size + 4 * num_values:
        raise CheckpointError(f"{path.name}: its header calls for {num_values} values, found {len(data) // 4 - 7}")
    return config, _tensors(config, np.frombuffer(data, "<f4", offset=_HEADER.size))


def _tensors(config: DecoderConfig, values: F32) -> dict[str, F32]:
    """Cut the flat export; each kind of tensor stands there for all layers at once."""
    shapes, at = config.tensor_shapes(), 0

    def cut(name: str) -> F32:
        nonlocal at
        size = int(np.prod(shapes[name]))
        at += size
        return values[at - size : at].reshape(shapes[name])

    tensors = {"model.embed_tokens.weight": cut("model.embed_tokens.weight")}
    for kind in (
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.down_proj",
        "mlp.up_proj",
    ):
        for layer in range(config.num_layers):
            name = f"model.layers.{layer}.{kind}.weight"
            array = cut(name)
            tensors[name] = _to_halves(array, config.head_dim) if kind.endswith(("q_proj", "k_proj")) else array
    tensors["model.norm.weight"] = cut("model.norm.weight")
    at += config.context_len * config.head_dim  # cosines and sines
    if not config.tie_embeddings:
        tensors["lm_head.weight"] = cut("lm_head.weight")
    return tensors


def _to_halves(weight: F32, head_dim: int) -> F32:
    """Rows of each head from (0, 1, 2, 3, ...) to (0, 2, ..., 1, 3, ...)."""
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def read_tokenizer(path: Path, vocab_size: int) -> list[tuple[bytes, float]]:
    """Bytes and score of every id of a tokenizer.bin."""
    data, at = path.read_bytes(), 4  # the first int32 is the longest token's length
    scored = []
    for token_id in range(vocab_size):
        if at + 8 > len(data):
            raise CheckpointError(f"{path.name}: ends at token {token_id} of {vocab_size}")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= length <= len(data) - at:
            raise CheckpointError(f"{path.name}: token {token_id} claims {length} bytes")
        scored.append((data[at : at + length], score))
        at += length
    if at != len(data):
        raise CheckpointError(f"{path.name}: {len(data) - at} bytes behind the last token")
    return scored


def tokenizer_json(scored: list[tuple[bytes, float]]) -> dict[str, Any]:
    """A tokenizer.json that merges as SentencePiece does: best-scored neighbours first, bytes where stuck."""
    spellings = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    spellings += [piece.decode().replace(" ", _SPACE) for piece, _ in scored[_FIRST_TEXT_ID:]]
    vocab = {spelling: token_id for token_id, spelling in enumerate(spellings)}
    if len(vocab) != len(spellings):
        raise CheckpointError("tokenizer.bin: two tokens have the same text")
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": spellings[i], **flags} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, space]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS_ID], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                back,
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": _merges(vocab, [score for _, score in scored]),
        },
    }


def _merges(vocab: dict[str, int], scores: list[float]) -> list[list[str]]:
    """Every way to make a token of two others; the better a result's score, the earlier."""
    ways = []
    for spelling, token_id in vocab.items():
        if token_id < _FIRST_TEXT_ID:
            continue
        for cut in range(1, len(spelling)):
            left, right = spelling[:cut], spelling[cut:]
            if vocab.get(left, 0) >= _FIRST_TEXT_ID and vocab.get(right, 0) >= _FIRST_TEXT_ID:
                ways.append((-scores[token_id], token_id, vocab[left], vocab[right], left, right))
    return [[left, right] for *_, left, right in sorted(ways)]
