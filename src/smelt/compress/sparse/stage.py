"""The stage "sparsify": single weights set to zero, and plain words on what that saves today: nothing.

The folder is as large as before and dense kernels are as fast as before; facts say so beside the sizes that forms with
an eye for zeros would have. Smaller and faster are `prune` (structured) and `quantize`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from smelt.checkpoint import Checkpoint
from smelt.compress.made import write_made
from smelt.compress.sparse import sizes
from smelt.compress.sparse.masks import Pattern, Scope, dropped
from smelt.compress.sparse.treatment import Sparsity, stem_of
from smelt.compress.stage import Needs, Work, how
from smelt.compress.walk import MEMORY_BYTES, walk
from smelt.core.decoder import MATRICES, DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.model.decoder import Decoder
from smelt.train.finetune.folder import stored_dtype
from smelt.train.hardware import pick_device

Method = Literal["magnitude", "threshold", "wanda", "sparsegpt"]
_METHODS = ("magnitude", "threshold", "wanda", "sparsegpt")
SCOPES = ("row", "matrix", "global")
_MOST_TOKENS = 128 * 2048  # of a calibration as `CalibrationConfig` makes it
_SIZE_AND_SPEED = "stored and run as dense matrices: no smaller and no faster until a reader of zeros is used"


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Which weights become zero.

    method: magnitude (|w|), threshold (all |w| below `threshold`), wanda (|w| times its input's norm, per output row),
    sparsegpt (with repair of the rest). share: of the chosen matrices' weights; or pattern, "2:4": 2 of every 4 inputs
    are kept. scope: what magnitude counts its share in. matrices: stems as in `core.decoder.MATRICES`. Embedding, head,
    norms and biases stay as they are.
    """

    method: Method = "sparsegpt"
    share: float = 0.5
    pattern: str | None = None
    scope: Scope = "matrix"
    threshold: float = 0.0
    matrices: tuple[str, ...] = MATRICES
    damping: float = 0.01
    device: str = how("auto")

    @property
    def name(self) -> str:
        """Sparsify."""
        return "sparsify"

    def needs(self, config: DecoderConfig) -> Needs:
        """Two models in float32; of a walk the hidden states, and SparseGPT's Hessian with what lies on its way."""
        whole = 4 * config.num_parameters
        if self.method in ("magnitude", "threshold"):
            return Needs(memory_bytes=3 * whole, disk_bytes=whole)
        widest = max(width for _, width in config.matrix_shapes().values())
        hidden = 4 * config.hidden_size * _MOST_TOKENS
        hessian = 5 * 4 * widest**2 if self.method == "sparsegpt" else 0
        spilled = hidden if hidden > MEMORY_BYTES else 0
        return Needs(memory_bytes=3 * whole + hidden - spilled + hessian, disk_bytes=2 * whole + spilled)

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """See `compress.stage.Stage`. Facts as in `facts_of`, and SparseGPT's loss of each matrix's output."""
        self._check(source)
        model = Decoder.from_tensors(source.config, source.tensors).to(pick_device(self.device)).eval()
        lost: Mapping[str, NDArray[Any]] = {}
        if self.method in ("magnitude", "threshold"):
            self._by_size(model)
        else:
            treatment = Sparsity(
                method="wanda" if self.method == "wanda" else "sparsegpt",
                share=self.share,
                pattern=self._pattern,
                matrices=self.matrices,
                damping=self.damping,
            )
            lost = walk(
                model,
                work.material.calibration,
                treatment,
                work.scratch / "walk",
                on_progress=work.on_progress,
                stopping=work.stopping,
            )
        write_made(work, source, source.config, model.tensors())
        asked = {"method": self.method, "share": self.share, "pattern": self.pattern, "scope": self.scope}
        found = {**asked, **facts_of(source, model, self.matrices, self._pattern)}
        if lost:
            found["lost"] = {name.removesuffix(".lost"): float(one[0]) for name, one in lost.items()}
        if self.method in ("wanda", "sparsegpt"):
            found["calibration"] = {
                "source": work.material.calibration.source,
                "digest": work.material.calibration.digest,
            }
        return found

    @property
    def _pattern(self) -> Pattern | None:
        return None if self.pattern is None else Pattern.parse(self.pattern)

    @torch.no_grad()
    def _by_size(self, model: Decoder) -> None:
        weights = chosen_weights(model, self.matrices)
        scores = {name: weight_OI.abs() for name, weight_OI in weights.items()}
        if self.method == "threshold":
            drops = {name: scores_OI < self.threshold for name, scores_OI in scores.items()}
        else:
            drops = dropped(scores, share=self.share, scope=self.scope, pattern=self._pattern)
        for name, drop_OI in drops.items():
            weights[name].masked_fill_(drop_OI, 0.0)

    def _check(self, source: Checkpoint) -> None:
        if self.method not in _METHODS:
            raise InvalidRequestError(f"method is {self.method!r}; sought {', '.join(_METHODS)}", param="method")
        if self.scope not in SCOPES:
            raise InvalidRequestError(f"scope is {self.scope!r}; sought {', '.join(SCOPES)}", param="scope")
        if self.method == "threshold" and (self.pattern is not None or not self.threshold > 0):
            raise InvalidRequestError("a threshold is above 0 and leaves no pattern", param="threshold")
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise InvalidRequestError(f"damping is {self.damping}; sought a number above 0", param="damping")
        check(source, self.share, self._pattern, self.matrices)


def check(source: Checkpoint, share: float, pattern: Pattern | None, matrices: tuple[str, ...]) -> None:
    """Raises InvalidRequestError for settings that do not fit the model."""
    if source.scheme is not None:
        raise InvalidRequestError("the model is in few bits already; sought the one it was made of: quantize last")
    if not 0.0 <= share < 1.0:
        raise InvalidRequestError(f"share is {share}; sought 0 to below 1", param="share")
    if not matrices or set(matrices) - set(MATRICES):
        found = ", ".join(matrices) or "none"
        raise InvalidRequestError(f"matrices: sought some of {', '.join(MATRICES)}; found {found}", param="matrices")
    shapes = source.config.matrix_shapes()
    if pattern is not None and (odd := [stem for stem in matrices if shapes[stem][1] % pattern.of]):
        width = shapes[odd[0]][1]
        raise InvalidRequestError(
            f"pattern {pattern}: sought inputs in whole groups of {pattern.of}, {odd[0]} has {width}", param="pattern"
        )


def chosen_weights(model: Decoder, matrices: tuple[str, ...]) -> dict[str, torch.nn.Parameter]:
    """By tensor name; a matrix that layers share is there once."""
    named = model.named_parameters()
    return {
        name: p
        for name, p in named
        if ".layers." in name and name.endswith("_proj.weight") and stem_of(name) in matrices
    }


def facts_of(source: Checkpoint, model: Decoder, matrices: tuple[str, ...], pattern: Pattern | None) -> dict[str, Any]:
    """sparsity by matrix and of all, bytes of the chosen matrices by form, times of a product, and a plain sentence."""
    after = {name: p.detach().float().cpu().numpy() for name, p in chosen_weights(model, matrices).items()}
    by_matrix = sizes.sparsity(after)
    zeros = sum(share * after[name].size for name, share in by_matrix.items())
    widest = max(after, key=lambda name: after[name].size)
    dtype = stored_dtype(source)
    return {
        "sparsity": by_matrix,
        "zeros": float(zeros / sum(matrix_OI.size for matrix_OI in after.values())),
        "bytes_before": sizes.stored_bytes((source.tensors[name] for name in after), dtype),
        "bytes_after": sizes.stored_bytes(after.values(), dtype, pattern),
        "product_us": {"matrix": widest, **sizes.product_times(source.tensors[widest], after[widest])},
        "size_and_speed": _SIZE_AND_SPEED,
    }
