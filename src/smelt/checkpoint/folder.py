"""A model folder that describes itself: opened with every claim checked, saved whole or not at all.

In it: config.json (Hugging Face form), model.safetensors or shards with their index, tokenizer.json and
tokenizer_config.json, optionally generation_config.json, card.json, lineage.json, and smelt.json with the
format version. Folders we save load in plain transformers.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smelt.checkpoint import strict_json
from smelt.checkpoint.compressed_tensors import KEY as QUANTIZATION
from smelt.checkpoint.compressed_tensors import read_config, scheme_of, write_storage
from smelt.checkpoint.hf_config import to_hf
from smelt.checkpoint.migrations import FORMAT_VERSION, Content, migrate
from smelt.checkpoint.quantized import QuantizedWeight
from smelt.checkpoint.quantized_reader import Dequantized, StoredMatrices
from smelt.checkpoint.quantized_writer import StoredParts, choose_storage
from smelt.checkpoint.safetensors import FloatDtype
from smelt.checkpoint.weights import Selection, Weights, open_weights, write_weights
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError
from smelt.core.quantization import Scheme

Tensors = Mapping[str, NDArray[np.float32]]

_TORCH_DTYPES: dict[FloatDtype, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_OLD_LLAMA_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
MAX_SHARD_BYTES = 4 << 30  # of one file, unless a tensor alone is larger


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """An opened folder.

    tensors: every name of `config.tensor_shapes()`, float32, read on access and not kept; of a quantized matrix what
    it stands for.
    quantized: the matrices held in few bits, by tensor name, unpacked on access; empty for a plain folder.
    scheme: what most of them are stored as; None for a plain folder.
    stored_dtypes: the set of dtypes on disk, e.g. {"BF16"}.
    fingerprint: hex sha256 of the configuration, the weights' layout and a sample of every tensor. It changes when
    a model is trained further; it is no proof against a forger.
    card: card.json, or None.
    """

    folder: Path
    config: DecoderConfig
    tensors: Tensors
    stored_dtypes: frozenset[str]
    fingerprint: str
    card: dict[str, Any] | None
    quantized: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    scheme: Scheme | None = None


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Open a model folder; no weight is read yet beyond a sample.

    Raises CheckpointError, saying what was sought and found, for anything missing or wrong, and
    UnsupportedError, by name, for what smelt does not do.
    """
    folder = Path(folder)
    name = folder.resolve().name  # "." has none of its own
    if not folder.is_dir():
        raise CheckpointError(f"{name}: no such model folder")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name}: no config.json, so not a model folder in Hugging Face form")
    config_json = strict_json.read_object(folder / "config.json")
    generation = _optional(folder, "generation_config.json")
    manifest = _optional(folder, "smelt.json")
    if manifest is None:
        read_config(config_json, generation)  # a foreign model is refused before its weights are looked at
    weights = open_weights(folder)
    content = Content(config=config_json, tensors=weights)
    if manifest is not None:
        content = migrate(content, manifest.get("format_version"))
    config, storage = read_config(content.config, generation)
    quantized = StoredMatrices(weights, storage, config) if storage else None
    digest = hashlib.sha256(strict_json.compact([config_json, generation]))
    weights.feed(digest)
    tensors = content.tensors if quantized is None else Dequantized(weights, quantized)
    return Checkpoint(
        folder=folder,
        config=config,
        tensors=_checked(tensors, config),
        stored_dtypes=frozenset(weights.dtype(name) for name in weights),
        fingerprint=digest.hexdigest(),
        card=_optional(folder, "card.json"),
        quantized=quantized or {},
        scheme=scheme_of(storage) if storage else None,
    )


def _optional(folder: Path, name: str) -> dict[str, Any] | None:
    return strict_json.read_object(folder / name) if (folder / name).is_file() else None


def _checked(tensors: Tensors, config: DecoderConfig, *, apart: Container[str] = ()) -> Tensors:
    """`tensors` with exactly the names and shapes of the configuration, but for those that are held `apart`."""
    sought = {name: shape for name, shape in config.tensor_shapes().items() if name not in apart}
    if missing := [name for name in sought if name not in tensors]:
        raise CheckpointError(f"weights: {_some(missing)} missing; config.json calls for {len(sought)} tensors")
    extra = [name for name in tensors if name not in sought]
    if isinstance(tensors, Weights | Dequantized):
        needless = frozenset(name for name in extra if _is_needless(name, tensors, config))
        tensors = tensors.without(needless)
        extra = [name for name in extra if name not in needless]
    if extra:
        raise CheckpointError(f"weights: {_some(extra)} not called for by config.json")
    for name, shape in sought.items():
        found = tensors.shape(name) if isinstance(tensors, Weights | Dequantized) else tensors[name].shape
        if tuple(found) != shape:
            raise CheckpointError(f"weights: {name} has shape {list(found)}, config.json calls for {list(shape)}")
    return tensors


def _is_needless(name: str, weights: Weights | Dequantized, config: DecoderConfig) -> bool:
    """Whether an uncalled-for tensor only repeats what is known: a tied head, or rotary frequencies of old exports."""
    if name == "lm_head.weight":
        return config.tie_embeddings and weights.same(name, "model.embed_tokens.weight")
    return _OLD_LLAMA_BUFFER.fullmatch(name) is not None


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:120] for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def save_checkpoint(
    folder: Path | str,
    config: DecoderConfig,
    tensors: Mapping[str, NDArray[Any]],
    *,
    dtype: FloatDtype = "F32",
    files: Mapping[str, bytes] | None = None,
    replace: bool = False,
    quantized: Mapping[str, QuantizedWeight] | None = None,
    scheme: Scheme | None = None,
) -> None:
    """Save a folder that plain transformers loads.

    `files` are further files by plain name (tokenizer.json, card.json, ...). The folder appears under its name
    only when complete and on disk. With `replace` a present folder is exchanged whole, and nothing of it is kept;
    without, a present non-empty folder raises CheckpointError, as do tensors that do not fit `config`.

    `quantized` are matrices to store in few bits, by tensor name, in place of what `tensors` has under these names or
    lacks; each in its own format. Of `scheme` the inputs' format is stored, for the layers' matrices; None: static
    where the matrices have input scales, else floating point. Scales are stored as `dtype` where it holds them exactly.
    """
    folder = Path(folder)
    matrices = quantized or {}
    storage = choose_storage(matrices, scheme, config)
    plain = Selection(tensors, [name for name in tensors if name not in storage])
    ordered = StoredParts(_checked(plain, config, apart=storage), matrices, storage, dtype=dtype, config=config)
    if folder.exists() and not (replace or _is_empty_dir(folder)):
        raise CheckpointError(f"{folder.name}: already there; choose another folder, or replace it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staging.chmod(0o755)
        write_weights(staging, ordered, dtype=dtype, max_shard_bytes=MAX_SHARD_BYTES, dtypes=ordered.dtypes)
        config_json = to_hf(config, dtype=_TORCH_DTYPES[dtype])
        if storage:
            config_json[QUANTIZATION] = write_storage(storage, config)
        documents = {
            "config.json": strict_json.dump(config_json),
            "smelt.json": strict_json.dump({"format_version": FORMAT_VERSION}),
            **(files or {}),
        }
        for name, data in documents.items():
            _write_durably(staging / _plain(name), data)
        _exchange(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _is_empty_dir(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _plain(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", name):
        raise CheckpointError(f"{name!r:.80} is no plain file name")
    return name


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _exchange(staging: Path, folder: Path) -> None:
    """Give the finished folder its name. A present one steps aside first and returns if that fails."""
    if not folder.exists() or _is_empty_dir(folder):
        staging.replace(folder)  # rename(2) replaces an empty directory
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.replace(aside)
    try:
        staging.replace(folder)
    except OSError:
        aside.replace(folder)
        raise
    shutil.rmtree(aside)
