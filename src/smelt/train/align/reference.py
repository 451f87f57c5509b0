"""Log-probabilities under the reference model: computed once, kept as two numbers a pair.

That saves a second model in memory and a third of each step's time. The file's name is a hash of the pairs and of every
weight of the model, so that numbers of other data or another model can never be taken for these. What is computed is
written now and then; called again after a kill, only the rest is computed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from smelt.core.errors import CheckpointError
from smelt.data.preferences import EncodedPair, collate_pairs, pairs_digest
from smelt.model.decoder import Decoder
from smelt.train.align.preference import answer_log_probs
from smelt.train.teachers.online import fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ReferenceProgress:
    """How far the reference pass is. left_s: seconds at the rate so far."""

    done: int
    total: int
    pairs_per_s: float
    left_s: float


def reference_log_probs(
    model: Decoder,
    pairs: Sequence[EncodedPair],
    folder: Path,
    *,
    pad_id: int,
    device: torch.device | None = None,
    save_s: float = 30.0,
    on_progress: Callable[[ReferenceProgress], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Summed log-probabilities of the chosen and the rejected answer of each pair, [len(pairs), 2], in nats.

    One pair at a time, so that neither memory nor a value depends on its neighbours. Raises CheckpointError where
    `folder` cannot be written or holds something else under the name.
    """
    path = reference_path(model, pairs, folder)
    found = _kept(path, len(pairs))
    missing: list[int] = np.flatnonzero(np.isnan(found).any(1)).tolist()
    began = saved = time.monotonic()
    with torch.no_grad():
        for count, index in enumerate(missing, 1):
            batch = collate_pairs([pairs[index]], pad_id)
            found[index] = answer_log_probs(model, batch, device or torch.device("cpu"))[0][0].cpu().numpy()
            now = time.monotonic()
            if count == len(missing) or now - saved >= save_s:
                _save(path, found)
                rate = count / max(1e-9, now - began)
                done = len(pairs) - len(missing) + count
                on_progress(
                    ReferenceProgress(
                        done=done, total=len(pairs), pairs_per_s=rate, left_s=(len(missing) - count) / rate
                    )
                )
                saved = now
    return found


def reference_path(model: Decoder, pairs: Sequence[EncodedPair], folder: Path) -> Path:
    """Where the log-probabilities of these pairs under this model are kept."""
    key = hashlib.sha256(f"{pairs_digest(pairs)} {fingerprint(model)}".encode()).hexdigest()
    return folder / f"reference-{key[:32]}.npy"


def _kept(path: Path, num: int) -> NDArray[np.float64]:
    """What an earlier call computed; the rest is not a number."""
    if not path.is_file():
        return np.full((num, 2), np.nan)
    try:
        found: NDArray[np.float64] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}; remove it, and it is computed anew") from error
    if found.shape != (num, 2) or found.dtype != np.float64:
        raise CheckpointError(
            f"{path.name}: sought float64 [{num}, 2], found {found.dtype} {list(found.shape)}; remove it"
        )
    return found


def _save(path: Path, values: NDArray[np.float64]) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as file:
            np.save(file, values, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise CheckpointError(f"the reference log-probabilities could not be written: {error.strerror}") from error
