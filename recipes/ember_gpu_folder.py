"""What leaves the accelerator's machine: the student's folder, and one archive of it and of the run's records."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.folder import Made, card, write_folder
from smelt.core.errors import DataError
from smelt.data.corpus.shards import write_whole
from smelt.train.lineage import chained, digest

HOME = "home.tar.xz"
# One file comes back, and 16 MiB is the most a file may have.
HOME_BYTES = 16 << 20


def export_student(
    made: Made, folder: Path, pack: Mapping[str, Any], teacher: Mapping[str, Any], told: Mapping[str, Any]
) -> None:
    """The model folder, weights in bf16, unmeasured: `smelt eval` measures it on a CPU, at home.

    pack: the manifest of the pack it learned from; teacher: what `teacher.json` tells; told: of the student's training.
    """
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
    told_card = {**card(made, None), "tier": "gpu", "data": pack["licences"]}
    write_folder(made, folder, told_card, {"chain": chained(steps)})


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
