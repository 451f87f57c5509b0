"""Wanda and SparseGPT as treatments of a walk. Shapes: N tokens of a batch, I inputs, O outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smelt.compress.quantize.hessian import Hessian, output_error
from smelt.compress.sparse.masks import Pattern, dropped, wanda_scores
from smelt.compress.sparse.sparsegpt import sparsegpt
from smelt.compress.walk import Group
from smelt.core.decoder import MATRICES


def stem_of(name: str) -> str:
    """ "mlp.down" of "model.layers.3.mlp.down_proj", or of its weight."""
    return ".".join(name.removesuffix(".weight").split(".")[3:]).removesuffix("_proj")


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Drops weights of the matrices whose stem is in `matrices`: `share` of each row, or what `pattern` leaves over."""

    method: Literal["wanda", "sparsegpt"]
    share: float = 0.5
    pattern: Pattern | None = None
    matrices: tuple[str, ...] = MATRICES
    damping: float = 0.01

    @property
    def name(self) -> str:
        """All that decides the weights."""
        return "sparsity " + json.dumps(asdict(self), sort_keys=True)

    @torch.no_grad()
    def treat(self, group: Group) -> Mapping[str, NDArray[Any]]:
        """Change the weights in place; SparseGPT keeps the share of each matrix's output, squared, that is lost."""
        chosen = {name: linear for name, linear in group.linears.items() if stem_of(name) in self.matrices}
        if not chosen:
            return {}
        return self._wanda(group, chosen) if self.method == "wanda" else self._sparsegpt(group, chosen)

    def _wanda(self, group: Group, chosen: Mapping[str, nn.Linear]) -> Mapping[str, NDArray[Any]]:
        like = _entrance(chosen)
        squares_I = torch.zeros(like.shape[1], dtype=torch.float64, device=like.device)
        for rows_NI in group.inputs():
            squares_I += rows_NI.double().square().sum(0)
        scores = {name: wanda_scores(linear.weight, squares_I) for name, linear in chosen.items()}
        for name, drop_OI in dropped(scores, share=self.share, scope="row", pattern=self.pattern).items():
            chosen[name].weight.masked_fill_(drop_OI, 0.0)
        return {}

    def _sparsegpt(self, group: Group, chosen: Mapping[str, nn.Linear]) -> Mapping[str, NDArray[Any]]:
        like = _entrance(chosen)
        dtype = torch.promote_types(like.dtype, torch.float32)
        hessian = Hessian.empty(like.shape[1], dtype=dtype, device=like.device)
        for rows_NI in group.inputs():
            hessian.add(rows_NI)
        mean_II = hessian.mean
        lost: dict[str, NDArray[Any]] = {}
        for name, linear in chosen.items():
            before_OI = linear.weight.clone()
            found_OI, _ = sparsegpt(before_OI, mean_II, share=self.share, pattern=self.pattern, damping=self.damping)
            linear.weight.copy_(found_OI)
            error, of = (float(output_error(x_OI, mean_II).sum()) for x_OI in (found_OI - before_OI, before_OI))
            lost[f"{name}.lost"] = np.array([error / of if of > 0 else 0.0])
        return lost


def _entrance(chosen: Mapping[str, nn.Linear]) -> Tensor:
    """One of the matrices, for the width and the kind of their inputs."""
    return next(iter(chosen.values())).weight
