"""The folder a fine-tuning makes: the base's own files, new weights, a card and a lineage that name both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smelt.checkpoint import save_checkpoint
from smelt.checkpoint.folder import Checkpoint
from smelt.checkpoint.safetensors import FloatDtype
from smelt.model.decoder import Decoder
from smelt.train.lineage import RECORDS, bare, chained, checked_chain, digest

_WRITTEN_ANEW = {"config.json", "smelt.json", "README.md", *RECORDS}
_MOST_BYTES = 64 << 20  # of one file beside the weights


def stored_dtype(base: Checkpoint) -> FloatDtype:
    """What the base's weights are stored in; F32 where they are mixed."""
    only = base.stored_dtypes
    return "BF16" if only == {"BF16"} else "F16" if only == {"F16"} else "F32"


def save_tuned(
    folder: Path,
    base: Checkpoint,
    model: Decoder,
    card: Mapping[str, Any],
    steps: list[dict[str, Any]],
    *,
    dtype: FloatDtype | None = None,
) -> None:
    """Write the folder whole, in place of an earlier one; `steps` go behind the base's lineage. dtype None: the base's.

    Raises CheckpointError for a base whose lineage was changed after it was made.
    """
    weights = {name: digest(tensor.tobytes().hex()) for name, tensor in model.tensors().items()}
    chain = chained([*_before(base), *steps, {"step": "weights", "float32_sha256": digest(weights)}])
    files = kept_files(base.folder)
    files["card.json"] = _json_bytes(card)
    files["lineage.json"] = _json_bytes({"chain": chain})
    save_checkpoint(folder, model.config, model.tensors(), dtype=dtype or stored_dtype(base), files=files, replace=True)


def base_name(base: Checkpoint) -> str:
    """The card's name of the base, else its folder's."""
    return str((base.card or {}).get("name") or base.folder.resolve().name)


def base_facts(base: Checkpoint) -> dict[str, Any]:
    """What a card and a lineage say about it."""
    return {"name": base_name(base), "fingerprint": base.fingerprint}


def _before(base: Checkpoint) -> list[dict[str, Any]]:
    """The base's own chain without its hashes (chaining gives the same ones again), and the base itself."""
    return [*bare(checked_chain(base.folder)), {"step": "base", **base_facts(base)}]


def kept_files(folder: Path) -> dict[str, bytes]:
    """Tokenizer, chat template, generation settings, licence: what a folder made from this one takes along.

    Not what is written anew (configuration, records of how it was made) and no weights.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
        plain = path.is_file() and not path.name.startswith(".") and path.stat().st_size <= _MOST_BYTES
        if (
            plain
            and not weights
            and path.name not in _WRITTEN_ANEW
            and path.suffix in ("", ".json", ".txt", ".jinja", ".model")
        ):
            found[path.name] = path.read_bytes()
    return found


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
