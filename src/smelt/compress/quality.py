"""How close a model is to its teacher on held-out text, and how well it predicts that text.

Shapes: N learned tokens of a batch, n of them in a piece, H hidden width, V rows of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smelt.compress.stage import Material
from smelt.data.batches import Batch
from smelt.evals.stats import ratio
from smelt.model.decoder import Decoder
from smelt.train.objectives import CrossEntropy, learned_hidden

_PIECE_NUMBERS = 1 << 22  # logits held at once: 16 MiB, twice


@dataclass(kw_only=True)
class _Sums:
    """Of each row of the held-out batches."""

    tokens: list[int] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    teacher_nats: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    agreed: list[float] = field(default_factory=list)


@torch.no_grad()
def quality(model: Decoder, teacher: Decoder, material: Material) -> dict[str, Any]:
    """bits_per_byte, bpb_increase, kl and agreement over the held-out batches, each with n (rows) and an interval.

    KL is the teacher's forward KL in nats a token; agreement the share of tokens whose likeliest successor is the
    teacher's; bpb_increase is relative to the teacher, its interval paired by row.
    """
    model.eval()
    teacher.to(next(model.parameters()).device)
    sums = _Sums()
    for batch in material.held_out:
        _add(sums, model, teacher, batch)
    rows = [str(i) for i in range(len(sums.tokens))]
    total = max(1, sum(sums.tokens))
    # Bytes are known of the whole only; a row has its share by tokens.
    num_bytes = [material.held_out_bytes * count / total for count in sums.tokens]
    bits = [nats / math.log(2) for nats in sums.nats]
    tokens = [float(count) for count in sums.tokens]
    increase = _shares(sums.nats, sums.teacher_nats, rows)
    return {
        "bits_per_byte": _shares(bits, num_bytes, rows),
        "bpb_increase": {
            **increase,
            "value": increase["value"] - 1.0,
            "interval95": [bound - 1.0 for bound in increase["interval95"]],
        },
        "kl": _shares(sums.divergence, tokens, rows),
        "agreement": _shares(sums.agreed, tokens, rows),
    }


@torch.no_grad()
def bits_per_byte(
    model: Decoder, material: Material, device: torch.device, check: Callable[[], None] = lambda: None
) -> float:
    """Held-out cross-entropy in bits over the bytes that the learned tokens stand for."""
    objective, nats = CrossEntropy(), 0.0
    for batch in material.held_out:
        check()
        nats += float(objective(model, batch, device).total)
    return nats / math.log(2) / material.held_out_bytes


def _shares(tops: Sequence[float], bottoms: Sequence[float], rows: Sequence[str]) -> dict[str, Any]:
    """Sum over sum at full precision, with the interval of a bootstrap over rows."""
    total = sum(bottoms)
    return {**ratio(tops, bottoms, rows), "value": sum(tops) / total if total else 0.0}


def _add(sums: _Sums, model: Decoder, teacher: Decoder, batch: Batch) -> None:
    """One batch's rows."""
    device = next(model.parameters()).device
    targets = batch.targets.reshape(-1)
    index = np.flatnonzero(targets >= 0)
    if not len(index):
        return
    ours_NH, theirs_NH = learned_hidden(model, batch, device), learned_hidden(teacher, batch, device)
    wanted_N = torch.from_numpy(targets[index]).to(device)
    vocab_len = max(model.config.vocab_size, teacher.config.vocab_size)
    piece_len = max(16, _PIECE_NUMBERS // vocab_len)
    found = [
        _piece(
            model.logits(ours_NH[start : start + piece_len]),
            teacher.logits(theirs_NH[start : start + piece_len]),
            wanted_N[start : start + piece_len],
        )
        for start in range(0, len(index), piece_len)
    ]
    values = torch.cat(found, dim=1).double().cpu().numpy()  # [4, N]
    row_of = index // batch.targets.shape[1]
    for row in np.unique(row_of):
        nats, teacher_nats, divergence, agreed = values[:, row_of == row].sum(axis=1)
        sums.tokens.append(int((row_of == row).sum()))
        sums.nats.append(float(nats))
        sums.teacher_nats.append(float(teacher_nats))
        sums.divergence.append(float(divergence))
        sums.agreed.append(float(agreed))


def _piece(ours_nV: Tensor, theirs_nV: Tensor, wanted_n: Tensor) -> Tensor:
    """[4, n]: nats of ours and of the teacher, KL(teacher || ours) on the rows both heads have, same likeliest."""
    shared = min(ours_nV.shape[1], theirs_nV.shape[1])  # heads may be padded to different lengths
    log_q, log_p = ours_nV[:, :shared].log_softmax(-1), theirs_nV[:, :shared].log_softmax(-1)
    return torch.stack(
        [
            F.cross_entropy(ours_nV, wanted_n, reduction="none"),
            F.cross_entropy(theirs_nV, wanted_n, reduction="none"),
            F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1),
            (log_q.argmax(-1) == log_p.argmax(-1)).to(log_q.dtype),
        ]
    )
