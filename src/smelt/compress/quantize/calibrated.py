"""Matrices quantized with what a walk shows of their inputs: rounding, GPTQ and AWQ, behind SmoothQuant where wanted.

A group of matrices that share inputs is taken at a time. First scales move between the inputs and the weights, which
changes no output (`fold`); then ranges are chosen and codes found. Beside each matrix stands what plain rounding of the
same weights to the same format would have lost. Shapes: N tokens of a batch, I inputs, O outputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smelt.checkpoint.quantized import QuantizedWeight
from smelt.compress.quantize import awq, grid
from smelt.compress.quantize.activations import scale_of_tensor
from smelt.compress.quantize.fold import Fold, folds, scale_inputs
from smelt.compress.quantize.gptq import gptq
from smelt.compress.quantize.hessian import Hessian, output_error
from smelt.compress.quantize.observers import make_observer
from smelt.compress.quantize.prepare import Statics
from smelt.compress.quantize.smooth import smoothing_scale
from smelt.compress.walk import Group
from smelt.core.decoder import DecoderConfig
from smelt.core.quantization import Scheme, WeightFormat

Method = Literal["rtn", "gptq", "awq"]
Range = Literal["whole", "mse", "output"]
Spread = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, slots=True)
class Seen:
    """Of the inputs of a group: their Hessian [I, I], mean and largest size [I], and how many rows there were."""

    hessian: Tensor
    mean: Tensor
    largest: Tensor
    num_rows: int

    @classmethod
    def of(cls, batches: Iterable[Tensor], width: int, like: Tensor) -> Self:
        """One pass over inputs, [N, I] each."""
        hessian = Hessian.empty(width, dtype=grid.wide(like).dtype, device=like.device)
        total_I, largest_I = torch.zeros(2, width, dtype=hessian.total.dtype, device=like.device)
        for rows_NI in batches:
            hessian.add(rows_NI)
            size_NI = rows_NI.abs().to(total_I.dtype)
            total_I += size_NI.sum(0)
            largest_I = torch.maximum(largest_I, size_NI.amax(0)) if len(size_NI) else largest_I
        return cls(hessian.mean, total_I / max(1, hessian.num_rows), largest_I, hessian.num_rows)

    def divided(self, scale_I: Tensor) -> Seen:
        """What would have been seen of inputs divided by `scale_I`."""
        hessian_II = self.hessian / scale_I / scale_I[:, None]
        return Seen(hessian_II, self.mean / scale_I, self.largest / scale_I, self.num_rows)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A treatment for `walk`: every matrix inside the layers in the scheme's format.

    method: rtn rounds to nearest. gptq lets later columns make up for earlier ones. awq scales channels by their inputs
    first, and rounds to nearest. range: the part of a group's range that codes cover: whole, mse (least error of the
    weights) or output (least error of the group's part of the output; queries and keys keep theirs, as their error
    meets in a product). smooth: SmoothQuant's strength, None: not used. act_order, damping: GPTQ's. search_tokens: at
    most about so many are run per try where AWQ compares outputs of attention or MLP.
    """

    config: DecoderConfig
    scheme: Scheme
    method: Method
    range: Range
    smooth: float | None = None
    act_order: bool = True
    damping: float = 0.01
    search_tokens: int = 4096

    @property
    def name(self) -> str:
        """All that decides codes, but the model."""
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "config"}
        return "calibrated " + json.dumps({**settings, "scheme": asdict(self.scheme)}, sort_keys=True)

    @torch.no_grad()
    def treat(self, group: Group) -> Mapping[str, NDArray[Any]]:
        """Put in place of each weight what its codes stand for; keeps codes and scales for `stored_weights`."""
        raw = Seen.of(group.inputs(), *_entrance(group))
        plain_error = {name: self._plain_error(linear.weight, raw) for name, linear in group.linears.items()}
        arrays = self._input_range(group, "plain_input")
        seen = self._folded(group, raw)
        rows = self._folded_behind(group)
        if seen is not raw:
            arrays |= self._input_range(group, "input")
        for name, linear in group.linears.items():
            weight_OI = linear.weight.clone()
            spread = self._ranges(name, weight_OI, seen)
            codes_OI = self._codes(weight_OI, seen, spread)
            rounded_OI = grid.dequantized(codes_OI, *spread, self.scheme.weights).to(weight_OI.dtype)
            linear.weight.copy_(rounded_OI)
            # In the matrix's first measure: what folding divided its rows by is multiplied again.
            scale_O1 = rows.get(name, torch.ones_like(weight_OI[:, :1]))
            lost = output_error((rounded_OI - weight_OI) * scale_O1, seen.hessian).sum()
            of = output_error(weight_OI * scale_O1, seen.hessian).sum()
            arrays |= _kept(f"{name}.weight", grid.as_stored(codes_OI, *spread, self.scheme.weights))
            arrays[f"{name}.weight.errors"] = np.array([float(lost / of) if of > 0 else 0.0, plain_error[name]])
        return arrays

    def _plain_error(self, weight_OI: Tensor, seen: Seen) -> float:
        """The share of the output that rounding to nearest loses, squared."""
        form = self.scheme.weights
        spread = grid.scales(weight_OI, form, self.plain_clip)
        rounded_OI = grid.dequantized(grid.codes(weight_OI, *spread, form), *spread, form)
        of = output_error(grid.wide(weight_OI), seen.hessian).sum()
        return float(output_error(rounded_OI - weight_OI, seen.hessian).sum() / of) if of > 0 else 0.0

    @property
    def plain_clip(self) -> grid.Clip:
        """The range for the control by rounding: the same where it takes no calibration, else the whole."""
        return grid.Clip(kind="mse") if self.range == "mse" else grid.Clip()

    def _folded(self, group: Group, seen: Seen) -> Seen:
        """Scale the inputs of the group where they come out of a norm; returns what is then seen of them."""
        fold = next((fold for fold in self._folds(group) if fold.behind_norm and _reads(group, fold)), None)
        if fold is None:
            return seen
        weights = {name: linear.weight for name, linear in group.linears.items()}
        if self.smooth is not None:
            scale_I = smoothing_scale(seen.largest, list(weights.values()), strength=self.smooth)
            scale_inputs(group.layer, fold, scale_I)
            seen = seen.divided(scale_I)
        if self.method == "awq":
            weights = {name: weight_OI.clone() for name, weight_OI in weights.items()}
            error = _BlockError.of(group, self.search_tokens)
            found = awq.search_scale(weights, seen.mean, rounded=self._rounded, error=error)
            scale_inputs(group.layer, fold, found.scale)
            seen = seen.divided(found.scale)
        return seen

    def _folded_behind(self, group: Group) -> dict[str, Tensor]:
        """AWQ where a matrix of the group makes the inputs of one behind it: divide its rows, before it is rounded.

        Returns what rows were divided by, [O, 1] by the matrix's name.
        """
        divided: dict[str, Tensor] = {}
        for fold in self._folds(group) if self.method == "awq" else ():
            if fold.behind_norm or f"model.layers.{group.layer_index}.{fold.maker}" not in group.linears:
                continue
            user = group.layer.get_submodule(fold.users[0])
            assert isinstance(user, nn.Linear)
            behind = replace(group, linears={fold.users[0]: user}, norm=None)
            seen = Seen.of(behind.inputs(), *_entrance(behind))
            plain_OI = user.weight.clone()

            def error(weights: awq.Weights, plain_OI: Tensor = plain_OI, seen: Seen = seen) -> float:
                return float(output_error(weights["behind"] - plain_OI, seen.hessian).sum())

            found = awq.search_scale({"behind": plain_OI}, seen.mean, rounded=self._rounded, error=error)
            scale_inputs(group.layer, fold, found.scale)
            divided[f"model.layers.{group.layer_index}.{fold.maker}"] = found.scale[:, None]
        return divided

    def _folds(self, group: Group) -> tuple[Fold, ...]:
        return folds(self.config, group.layer_index)

    def _rounded(self, weight_OI: Tensor) -> Tensor:
        form = self.scheme.weights
        spread = grid.scales(weight_OI, form)
        return grid.dequantized(grid.codes(weight_OI, *spread, form), *spread, form).to(weight_OI.dtype)

    def _ranges(self, name: str, weight_OI: Tensor, seen: Seen) -> Spread:
        form: WeightFormat = self.scheme.weights
        if self.range == "mse":
            return grid.scales(weight_OI, form, grid.Clip(kind="mse"))
        if self.range == "whole" or name.endswith(("q_proj", "k_proj")):
            return grid.scales(weight_OI, form)
        return awq.output_clip(weight_OI, seen.hessian, form)

    def _codes(self, weight_OI: Tensor, seen: Seen, spread: Spread) -> Tensor:
        form = self.scheme.weights
        if self.method != "gptq":
            return grid.codes(weight_OI, *spread, form)
        return gptq(weight_OI, seen.hessian, *spread, form, act_order=self.act_order, damping=self.damping)

    def _input_range(self, group: Group, key: str) -> dict[str, NDArray[Any]]:
        """Scale and zero point of static activations, under `key` of every matrix of the group."""
        form = self.scheme.activations
        if form is None or form.dynamic:
            return {}
        observer = make_observer(form)
        for rows_NI in group.inputs():
            observer.update(rows_NI)
        found = np.array(scale_of_tensor(*observer.range(), form))
        return {f"{name}.weight.{key}": found for name in group.linears}


def stored_weights(kept: Mapping[str, NDArray[Any]], form: WeightFormat) -> dict[str, QuantizedWeight]:
    """What a walk with `Calibrated` kept, as a folder holds it, by tensor name."""
    found = {}
    for key, codes in kept.items():
        if key.endswith(".codes"):
            name = key.removesuffix(".codes")
            seen = kept.get(f"{name}.input", kept.get(f"{name}.plain_input"))
            found[name] = QuantizedWeight(
                format=form,
                codes=codes,
                scales=kept[f"{name}.scales"],
                zeros=kept.get(f"{name}.zeros"),
                input_scale=None if seen is None else float(seen[0]),
                input_zero=0 if seen is None else int(seen[1]),
            )
    return found


def plain_statics(kept: Mapping[str, NDArray[Any]]) -> Statics:
    """Scales and zero points of the inputs as they were before anything was folded, by tensor name."""
    end = ".plain_input"
    return {key.removesuffix(end): (float(a[0]), int(a[1])) for key, a in kept.items() if key.endswith(end)}


def layer_errors(kept: Mapping[str, NDArray[Any]], method: str) -> dict[str, dict[str, float]]:
    """The share of its output's square that each matrix lost, by method and by plain rounding."""
    return {
        key.removesuffix(".weight.errors"): {method: float(pair[0]), "rtn": float(pair[1])}
        for key, pair in kept.items()
        if key.endswith(".weight.errors")
    }


@dataclass(frozen=True)
class _BlockError:
    """The mean squared error of attention's or the MLP's output when weights of the group are others."""

    group: Group
    wanted: list[Tensor]

    @classmethod
    def of(cls, group: Group, most_tokens: int) -> Self:
        """Against the output as it is, over the first batches up to `most_tokens`, one at least."""
        wanted: list[Tensor] = []
        for rows_NH in group.outputs():
            wanted.append(rows_NH)
            if sum(map(len, wanted)) >= most_tokens:
                break
        return cls(group, wanted)

    def __call__(self, weights: awq.Weights) -> float:
        before = {name: linear.weight.clone() for name, linear in self.group.linears.items()}
        for name, weight_OI in weights.items():
            self.group.linears[name].weight.copy_(weight_OI)
        found: Iterator[Tensor] = islice(self.group.outputs(), len(self.wanted))
        total = sum(float((a - b).double().square().sum()) for a, b in zip(found, self.wanted, strict=True))
        for name, weight_OI in before.items():
            self.group.linears[name].weight.copy_(weight_OI)
        return total / max(1, sum(wanted.numel() for wanted in self.wanted))


def _entrance(group: Group) -> tuple[int, Tensor]:
    """Width of the group's inputs, and a tensor of their type."""
    weight = next(iter(group.linears.values())).weight
    return weight.shape[1], weight


def _reads(group: Group, fold: Fold) -> bool:
    return {f"model.layers.{group.layer_index}.{user}" for user in fold.users} == set(group.linears)


def _kept(name: str, weight: QuantizedWeight) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {f"{name}.codes": weight.codes, f"{name}.scales": weight.scales}
    return arrays if weight.zeros is None else {**arrays, f"{name}.zeros": weight.zeros}
