"""Where a run stands, on disk: safetensors and JSON in a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from smelt.core.errors import CheckpointError

_FORMAT = 1


@dataclass(kw_only=True)
class Position:
    """What a resumed run must know besides tensors.

    `stage`, `chunk`, `batch`: the next batch of the data stream. `plan`: the schedule as settled. `elapsed_s`: wall
    time of all earlier pieces.
    """

    step: int = 0
    stage: int = 0
    chunk: int = 0
    batch: int = 0
    num_tokens: int = 0
    elapsed_s: float = 0.0
    plan: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, tensors: dict[str, Tensor], position: Position, identity: str) -> None:
    """Write `folder`/state-<step>, then drop the older ones: a kill at any moment leaves a whole one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, staging / "state.safetensors"
    )
    document = {"format": _FORMAT, "identity": identity, "position": asdict(position)}
    (staging / "state.json").write_text(json.dumps(document, indent=1))
    for path in staging.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    final = folder / f"state-{position.step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    staging.rename(final)
    for old in sorted(folder.glob("state-*"))[:-1]:
        shutil.rmtree(old)


def load(folder: Path, identity: str) -> tuple[dict[str, Tensor], Position] | None:
    """The latest state under `folder`, or None. Raises CheckpointError when another run's state lies there."""
    from safetensors.torch import load_file

    found = sorted(folder.glob("state-*"))
    if not found:
        return None
    document = json.loads((found[-1] / "state.json").read_text())
    if document.get("format") != _FORMAT or document.get("identity") != identity:
        raise CheckpointError(
            f"{found[-1].name} belongs to another run: sought {identity[:12]}, "
            f"found {str(document.get('identity'))[:12]}; choose another folder or remove it"
        )
    tensors: dict[str, Tensor] = load_file(found[-1] / "state.safetensors")
    return tensors, Position(**document["position"])
