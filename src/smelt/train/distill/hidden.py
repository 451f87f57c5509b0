"""Hidden-state terms: layers of the student drawn towards layers of the teacher through learned projections.

Worth its cost where depth was cut hard or widths differ (reference: DistilBERT, Sanh et al. 2019; MiniLM); next to a
good logit loss it adds little. Shapes: N learned tokens, H the student's hidden width, G the teacher's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smelt.core.errors import InvalidRequestError
from smelt.model.decoder import Decoder
from smelt.train.losses import cosine_distance, mean_squared


@dataclass(frozen=True, kw_only=True)
class HiddenMatch:
    """pairs: (student layer, teacher layer), whose outputs are compared. weight: factor of the summed terms.

    "cosine": 1 - cos; "mse": mean over the teacher's width of the squared difference, of vectors scaled to mean
    square 1, so that the term does not depend on how large a residual stream grows.
    """

    pairs: tuple[tuple[int, int], ...]
    kind: Literal["cosine", "mse"] = "cosine"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InvalidRequestError("hidden-state terms need at least one pair of layers (student, teacher)")


class LayerTap:
    """Outputs of some layers of a decoder, kept for the pass under way in this thread and nowhere else."""

    def __init__(self, model: Decoder, layers: Sequence[int]) -> None:
        """Raises InvalidRequestError for a layer the decoder does not have."""
        self._local = threading.local()
        for layer in sorted(set(layers)):
            if not 0 <= layer < model.config.num_layers:
                raise InvalidRequestError(f"layer {layer}: the decoder has layers 0 to {model.config.num_layers - 1}")
            model.model.layers[layer].register_forward_hook(self._keeper(layer))

    def _keeper(self, layer: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found: dict[int, Tensor] | None = getattr(self._local, "found", None)
            if found is not None:  # a pass nobody listens to (an evaluation, a recomputation) keeps nothing
                found[layer] = output

        return keep

    @contextmanager
    def listening(self) -> Iterator[dict[int, Tensor]]:
        """Within: each tapped layer's last output [B, T, H], by layer."""
        found: dict[int, Tensor] = {}
        self._local.found = found
        try:
            yield found
        finally:
            self._local.found = None


class HiddenTerms(nn.Module):
    """The terms of a HiddenMatch for one student and one teacher, with a projection [G, H] a pair.

    A projection starts as the identity where widths agree, else from Xavier's distribution, drawn from `seed`.
    """

    def __init__(self, match: HiddenMatch, student: Decoder, teacher: Decoder, seed: int = 0) -> None:
        super().__init__()
        self.match = match
        self.student_tap = LayerTap(student, [pair[0] for pair in match.pairs])
        self.teacher_tap = LayerTap(teacher, [pair[1] for pair in match.pairs])
        generator = torch.Generator().manual_seed(seed)
        hidden, wide = student.config.hidden_size, teacher.config.hidden_size
        self.projections = nn.ParameterList()
        for _ in match.pairs:
            weight = torch.eye(hidden)
            if hidden != wide:
                weight = torch.empty(wide, hidden)
                nn.init.xavier_uniform_(weight, generator=generator)
            self.projections.append(nn.Parameter(weight))

    def loss(self, student: dict[int, Tensor], teacher: dict[int, Tensor], index_N: Tensor) -> Tensor:
        """Weighted sum over the tokens `index_N` of the flattened batch and over all pairs, a scalar."""
        total = index_N.new_zeros((), dtype=torch.float32)
        for (ours, theirs), weight_GH in zip(self.match.pairs, self.projections, strict=True):
            hidden_NG = F.linear(student[ours].flatten(0, 1)[index_N], weight_GH).float()
            sought_NG = teacher[theirs].flatten(0, 1)[index_N].detach().float()
            if self.match.kind == "cosine":
                total = total + cosine_distance(hidden_NG, sought_NG).sum()
            else:
                total = total + mean_squared(_unit(hidden_NG), _unit(sought_NG)).sum()
        return self.match.weight * total


def _unit(x_NG: Tensor) -> Tensor:
    return F.rms_norm(x_NG, (x_NG.shape[-1],), eps=1e-6)
