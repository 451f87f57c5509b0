"""What leaves the accelerator's machine: the student's folder, and one archive of it and of the run's records."""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.folder import Made, card
from smelt.core.errors import DataError
from smelt.data.corpus.shards import write_whole
from smelt.train.lineage import chained, digest

if TYPE_CHECKING:
    import torch

HOME = "home.tar.xz"
# One file comes back, and 16 MiB is the most a file may have.
HOME_BYTES = 16 << 20


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine, for the lineage."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cores": os.cpu_count(), "machine": platform.machine(), "accelerator": name}


def export_student(
    made: Made, folder: Path, pack: Mapping[str, Any], teacher: Mapping[str, Any], told: Mapping[str, Any]
) -> None:
    """The model folder, weights in bf16, unmeasured: `smelt eval` measures it on a CPU, at home.

    pack: the manifest of the pack it learned from; teacher: what `teacher.json` tells; told: of the student's training.
    """
    from smelt.chat.house_template import house_tokenizer_config
    from smelt.checkpoint import save_checkpoint

    weights = {name: digest(tensor.tobytes().hex()) for name, tensor in made.model.tensors().items()}
    steps: list[dict[str, Any]] = [
        {"step": "data", **pack["origin"], "pack_sha256": digest([part["sha256"] for part in pack["parts"]])},
        {"step": "tokenizer", "sha256": digest(made.tokenizer.json), "vocab_size": made.tokenizer.vocab_size},
        {"step": "teacher", "recipe": made.story.recipe, "tier": "gpu", **teacher},
        {
            "step": "student",
            "recipe": made.story.recipe,
            "tier": "gpu",
            "config": json.loads(json.dumps(asdict(made.settings), default=str)),
            "steps": made.position.step,
            "tokens": made.position.num_tokens,
            "wall_s": round(made.position.elapsed_s),
            **told,
        },
        {"step": "weights", "float32_sha256": digest(weights)},
    ]
    with tempfile.TemporaryDirectory() as scratch:
        made.tokenizer.save(scratch, house_tokenizer_config())
        files = {path.name: path.read_bytes() for path in Path(scratch).iterdir()}
    files["card.json"] = _json({**card(made, None), "tier": "gpu", "data": pack["licences"]})
    files["lineage.json"] = _json({"chain": chained(steps)})
    save_checkpoint(folder, made.model.config, made.model.tensors(), dtype="BF16", files=files, replace=True)


def take_home(out: Path, paths: Iterable[Path], *, most: int = HOME_BYTES) -> Path:
    """`home.tar.xz` under `out` with those of `paths` (files and folders under it) that are there.

    Raises DataError, the archive left in place, where it is larger than what comes back.
    """
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:xz", preset=6) as archive:
        for path in paths:
            if path.exists():
                archive.add(path, str(path.relative_to(out)))
    write_whole(out / HOME, held.getvalue())
    if held.tell() > most:
        raise DataError(f"{HOME}: sought at most {most} bytes to take home, found {held.tell()}; fetch it in parts")
    return out / HOME


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
