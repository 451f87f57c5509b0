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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smelt.checkpoint import strict_json
from smelt.checkpoint.hf_config import from_hf, to_hf
from smelt.checkpoint.migrations import FORMAT_VERSION, Content, migrate
from smelt.checkpoint.safetensors import FloatDtype
from smelt.checkpoint.weights import Selection, Weights, open_weights, write_weights
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError

Tensors = Mapping[str, NDArray[np.float32]]

_TORCH_DTYPES: dict[FloatDtype, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_OLD_LLAMA_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_DEFAULT_SHARD_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """An opened folder.

    tensors: every name of `config.tensor_shapes()`, float32, read on access and not kept.
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
        from_hf(config_json, generation)  # a foreign model is refused before its weights are looked at
    weights = open_weights(folder)
    content = Content(config=config_json, tensors=weights)
    if manifest is not None:
        content = migrate(content, manifest.get("format_version"))
    config = from_hf(content.config, generation)
    digest = hashlib.sha256(strict_json.compact([config_json, generation]))
    weights.feed(digest)
    return Checkpoint(
        folder=folder,
        config=config,
        tensors=_checked(content.tensors, config),
        stored_dtypes=frozenset(weights.dtype(name) for name in weights),
        fingerprint=digest.hexdigest(),
        card=_optional(folder, "card.json"),
    )


def _optional(folder: Path, name: str) -> dict[str, Any] | None:
    return strict_json.read_object(folder / name) if (folder / name).is_file() else None


def _checked(tensors: Tensors, config: DecoderConfig) -> Tensors:
    """`tensors` with exactly the names and shapes of the configuration."""
    sought = config.tensor_shapes()
    if missing := [name for name in sought if name not in tensors]:
        raise CheckpointError(f"weights: {_some(missing)} missing; config.json calls for {len(sought)} tensors")
    extra = [name for name in tensors if name not in sought]
    if isinstance(tensors, Weights):
        needless = frozenset(name for name in extra if _is_needless(name, tensors, config))
        tensors = tensors.without(needless)
        extra = [name for name in extra if name not in needless]
    if extra:
        raise CheckpointError(f"weights: {_some(extra)} not called for by config.json")
    for name, shape in sought.items():
        found = tensors.shape(name) if isinstance(tensors, Weights) else tensors[name].shape
        if tuple(found) != shape:
            raise CheckpointError(f"weights: {name} has shape {list(found)}, config.json calls for {list(shape)}")
    return tensors


def _is_needless(name: str, weights: Weights, config: DecoderConfig) -> bool:
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
    max_shard_bytes: int = _DEFAULT_SHARD_BYTES,
    replace: bool = False,
) -> None:
    """Save a folder that plain transformers loads.

    `files` are further files by plain name (tokenizer.json, card.json, ...). The folder appears under its name
    only when complete and on disk. With `replace` a present folder is exchanged whole, and nothing of it is kept;
    without, a present non-empty folder raises CheckpointError, as do tensors that do not fit `config`.
    """
    folder = Path(folder)
    ordered = Selection(_checked(tensors, config), list(config.tensor_shapes()))
    if folder.exists() and not (replace or _is_empty_dir(folder)):
        raise CheckpointError(f"{folder.name}: already there; choose another folder, or replace it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staging.chmod(0o755)
        write_weights(staging, ordered, dtype=dtype, max_shard_bytes=max_shard_bytes)
        documents = {
            "config.json": strict_json.dump(to_hf(config, dtype=_TORCH_DTYPES[dtype])),
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
