"""The stages "share" (fewer matrices, as many layers) and "repeat" (as many matrices, more layers)."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from smelt.checkpoint import Checkpoint
from smelt.checkpoint.safetensors import SafetensorsFile, write_file
from smelt.compress.made import write_made
from smelt.compress.share.factors import Init, energy, low_rank, shared_matrix
from smelt.compress.share.patterns import Adjacent, Groups, Loop, Pattern, Similar, most_alike, sharing_layers
from smelt.compress.share.repeat import repeated
from smelt.compress.share.similarity import activation_cka, weight_cosines
from smelt.compress.share.tensors import Arrays, Made, reading, zeros
from smelt.compress.stage import Needs, Progress, Work, how
from smelt.core.decoder import MATRICES, DecoderConfig
from smelt.core.errors import InvalidRequestError, TrainingStoppedError
from smelt.model.decoder import Decoder
from smelt.train.finetune.folder import stored_dtype
from smelt.train.hardware import pick_device

_FLOATS = frozenset({"F32", "F16", "BF16"})
_SUMS = ("bare", "left", "whole")
_UNLIKE = 0.5  # relative error; two matrices that have nothing in common lose 0.71 to their mean


@dataclass(frozen=True, kw_only=True)
class Share:
    """A trained model of plain layers into one whose groups of layers share matrices; to be repaired by distillation.

    pattern: which layers; rank: of what every layer of a group keeps of its own beside the shared matrix (0: nothing;
    8 to 64 is usual; at a matrix's smaller side nothing is lost, and nothing saved). init: the shared matrix is the
    group's mean, or its first layer's. entry_bias: layers that share have a learned vector in front, zeros at first.
    """

    pattern: Pattern = Adjacent()
    rank: int = 16
    init: Init = "mean"
    entry_bias: bool = False
    device: str = how("auto")
    name: ClassVar[str] = "share"

    def needs(self, config: DecoderConfig) -> Needs:
        """The largest group's matrices of one kind in float64, three times over; scratch and result."""
        largest = max(rows * cols for rows, cols in config.matrix_shapes().values())
        whole = 4 * config.num_parameters
        forward = whole if isinstance(self.pattern, Similar) and self.pattern.measure == "cka" else 0
        return Needs(memory_bytes=24 * largest * config.num_layers + forward, disk_bytes=3 * whole)

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """See `compress.stage.Stage`. Facts: the groups, how alike neighbours are, how far matrices moved, `warnings`.

        `error` is the length of what was lost relative to the matrices' own, over all that are shared, without the
        residues and with them. Raises InvalidRequestError for a pattern that does not fit and for layers that share.
        """
        config = source.config
        self._check(source)
        groups, alike = self._groups(source, work)
        layers = sharing_layers(
            config.layers, groups, rank=self.rank, own_first=self.init == "first", entry_bias=self.entry_bias
        )
        smaller = dataclasses.replace(config, layers=layers)
        tensors, errors = self._converted(source, smaller, groups, work)
        dtype = stored_dtype(source)
        write_made(work, source, smaller, tensors)
        item_bytes = 4 if dtype == "F32" else 2
        warnings = _warnings(errors, config, smaller)
        for warning in warnings:
            work.say(f"share: {warning}")
        return {
            "groups": [list(group) for group in groups if len(group) > 1],
            "stored_layers": sum(layer.weights is None for layer in layers),
            "alike": alike,
            "error": errors,
            "warnings": warnings,
            "parameters": {"before": config.num_parameters, "after": smaller.num_parameters},
            "weight_bytes": {
                "before": config.num_parameters * item_bytes,
                "after": smaller.num_parameters * item_bytes,
            },
        }

    def _check(self, source: Checkpoint) -> None:
        _check_source(source)
        if self.rank < 0:
            raise InvalidRequestError(f"rank is {self.rank}; sought 0 or more", param="rank")
        if not isinstance(self.pattern, Similar):
            self.pattern.groups(source.config.num_layers)
        else:
            most_alike(np.zeros((source.config.num_layers,) * 2), self.pattern)

    def _groups(self, source: Checkpoint, work: Work) -> tuple[Groups, dict[str, Any] | None]:
        """The groups, and how alike each layer and the next are, where that decided."""
        config, pattern = source.config, self.pattern
        if not isinstance(pattern, Similar):
            return pattern.groups(config.num_layers), None
        if pattern.measure == "weights":
            similarity = weight_cosines(config, source.tensors)
        else:
            model = Decoder.from_tensors(config, source.tensors).to(pick_device(self.device)).eval()
            similarity = activation_cka(model, work.material.calibration)
        neighbours = [round(float(value), 4) for value in np.diagonal(similarity, 1)]
        return most_alike(similarity, pattern), {"measure": pattern.measure, "neighbours": neighbours}

    def _converted(
        self, source: Checkpoint, smaller: DecoderConfig, groups: Groups, work: Work
    ) -> tuple[Arrays, dict[str, float]]:
        """The tensors of the result, and the relative errors. A finished group is a file in the scratch folder."""
        makers = {name: reading(source.tensors, name) for name in smaller.tensor_shapes() if name in source.tensors}
        makers |= {
            name: zeros(shape) for name, shape in smaller.tensor_shapes().items() if name.endswith(".entry.bias")
        }
        sums = [0.0, 0.0, 0.0]
        joined = [group for group in groups if len(group) > 1]
        began, made = time.monotonic(), 0
        work.scratch.mkdir(parents=True, exist_ok=True)
        for number, group in enumerate(joined):
            if work.stopping.is_set():
                raise TrainingStoppedError(f"share: stopped before group {number}; finished ones are kept, call again")
            path = work.scratch / f"group-{_identity(self, source, group)}.safetensors"
            if not path.is_file():
                part = path.with_suffix(".part")
                arrays, told = _joined(source.tensors, group, self.rank, self.init)
                write_file(part, arrays, "F32", told)
                part.replace(path)
                made += 1
            file = SafetensorsFile(path)
            sums = [total + float(file.metadata[key]) for total, key in zip(sums, _SUMS, strict=True)]
            makers |= {name: reading(file, name) for name in file}
            left_s = (time.monotonic() - began) / made * (len(joined) - number - 1) if made else None
            work.on_progress(Progress(unit="groups", done=number + 1, total=len(joined), left_s=left_s))
        bare, left, whole = sums
        errors = {"shared": (bare / max(whole, 1e-300)) ** 0.5, "with_residues": (left / max(whole, 1e-300)) ** 0.5}
        return Made(makers), errors


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A model of plain layers into a deeper one that runs some of them more than once, to be trained on from there.

    entry_bias: a layer's further runs have a learned vector in front, zeros at first.
    """

    pattern: Adjacent | Loop = Loop()
    entry_bias: bool = True
    name: ClassVar[str] = "repeat"

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """See `compress.stage.Stage`. Raises InvalidRequestError as `Share` does."""
        _check_source(source)
        order = self.pattern.order(source.config.num_layers)
        deeper, tensors = repeated(source.config, source.tensors, order, entry_bias=self.entry_bias)
        write_made(work, source, deeper, tensors)
        parameters = {"before": source.config.num_parameters, "after": deeper.num_parameters}
        return {"order": list(order), "layers": deeper.num_layers, "parameters": parameters}


def _check_source(source: Checkpoint) -> None:
    if not source.stored_dtypes <= _FLOATS:
        found = ", ".join(sorted(source.stored_dtypes))
        raise InvalidRequestError(f"the source's weights are stored as {found}; sought floating point: share first")
    if not all(layer.plain for layer in source.config.layers):
        raise InvalidRequestError("the source's layers are no plain ones any more; sought a model before such stages")


def _joined(
    tensors: Arrays, group: tuple[int, ...], rank: int, init: Init
) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """What a group stores, and three squared lengths: of what is lost without residues, with them, and of all."""
    found: dict[str, NDArray[np.float32]] = {}
    bare = left = whole = 0.0
    for stem in MATRICES:
        weights_NOI = torch.stack(
            [torch.from_numpy(np.array(tensors[f"model.layers.{i}.{stem}_proj.weight"])).double() for i in group]
        )
        shared_OI = shared_matrix(weights_NOI, init).float()  # as it is stored: the residues make up for its rounding
        found[f"model.layers.{group[0]}.{stem}_proj.weight"] = shared_OI.numpy()
        whole += energy(weights_NOI)
        for i, weight_OI in zip(group, weights_NOI, strict=True):
            lost_OI = weight_OI - shared_OI
            bare += energy(lost_OI)
            if rank and not (init == "first" and i == group[0]):
                expand, reduce = (factor.float() for factor in low_rank(lost_OI, rank))
                lost_OI = lost_OI - expand.double() @ reduce.double()
                found[f"model.layers.{i}.{stem}_residue.reduce"] = reduce.numpy()
                found[f"model.layers.{i}.{stem}_residue.expand"] = expand.numpy()
            left += energy(lost_OI)
    return found, {"bare": repr(bare), "left": repr(left), "whole": repr(whole)}


def _warnings(errors: Mapping[str, float], config: DecoderConfig, smaller: DecoderConfig) -> list[str]:
    found = []
    if errors["with_residues"] > _UNLIKE:
        found.append(
            f"the layers have little in common: {errors['with_residues']:.0%} of their matrices' length is lost. What "
            "comes out is a start for training, not a model to be repaired by a little of it"
        )
    if smaller.num_parameters >= config.num_parameters:
        found.append("residues of this rank take as much as sharing saves")
    return found


def _identity(stage: Share, source: Checkpoint, group: tuple[int, ...]) -> str:
    parts = (source.fingerprint, stage.rank, stage.init, group)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
