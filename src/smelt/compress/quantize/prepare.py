"""prepare -> calibrate -> convert: a model from floating point to few bits in three calls.

    prepared = prepare(model, Scheme(weights=WeightFormat(bits=8), activations=ActivationFormat(dynamic=False)))
    prepared.calibrate(batches)
    quantized = prepared.convert()        # what `save_checkpoint(..., quantized=quantized, scheme=scheme)` takes

Only static activations have something to calibrate. Shapes: B rows, T tokens, I inputs, N tokens without padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from smelt.checkpoint.quantized import QuantizedWeight
from smelt.compress.quantize import rtn
from smelt.compress.quantize.activations import scale_of_tensor
from smelt.compress.quantize.fake import FakeDecoder, faked
from smelt.compress.quantize.grid import MINMAX, Clip
from smelt.compress.quantize.integer import integer_decoder
from smelt.compress.quantize.observers import Observer, make_observer
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import ActivationFormat, Scheme
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.objectives import batch_hidden, kept_places, on_device

Statics = dict[str, tuple[float, int]]
"""Scale and zero point of the inputs of matrices, by the matrix's name."""


class Prepared:
    """A model, how it is to be stored, and what was seen of its inputs. The model is not changed.

    observers: by the name of the matrix whose inputs they watch; none where inputs are dynamic or in floating point.
    A matrix that several layers share has one, for the inputs of all.
    """

    def __init__(self, model: Decoder, scheme: Scheme, clip: Clip) -> None:
        self.model, self.scheme, self.clip = model, scheme, clip
        self.observers: dict[str, Observer] = {}
        if (static := _static(scheme)) is not None:
            names = [name for name in rtn.formats(model.config, scheme) if ".layers." in name]
            self.observers = {name: make_observer(static) for name in names}

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> Prepared:
        """Watch the inputs of every matrix on these batches, padding left out; may be called again with more.

        Raises InvalidRequestError where activations are no numbers.
        """
        if self.observers:
            device = next(self.model.parameters()).device
            with self._watching() as places:
                for batch in batches:
                    places[:] = [on_device(kept_places(batch), device)]
                    batch_hidden(self.model, batch, device)
        return self

    def state(self) -> dict[str, Tensor]:
        """All that was seen, to be kept; `merge` gives it to a model prepared alike."""
        return {f"{name}:{key}": part for name, seen in self.observers.items() for key, part in seen.state().items()}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what another one saw."""
        for name, observer in self.observers.items():
            known = {key.partition(":")[2]: part for key, part in state.items() if key.startswith(f"{name}:")}
            observer.merge(known)

    def statics(self) -> Statics:
        """Scales and zero points of the inputs. Raises InvalidRequestError before calibration."""
        static, found = _static(self.scheme), {}
        for name, observer in self.observers.items():
            assert static is not None
            found[name] = scale_of_tensor(*observer.range(), static)
        return found

    def convert(self) -> dict[str, QuantizedWeight]:
        """Codes and scales of every tensor the scheme quantizes, each rounded to nearest."""
        weights = rtn.rounded(self.model.config, self.model.tensors(), self.scheme, self.clip)
        return with_statics(weights, self.statics())

    def faked(self) -> FakeDecoder:
        """The converted model in floating point, trainable."""
        return faked(self.model, self.scheme, clip=self.clip, statics=self.statics() or None)

    def integer(self) -> Decoder:
        """The converted model in integers: slow, and what a kernel must equal."""
        return integer_decoder(self.model.config, self.model.tensors(), self.convert(), self.scheme)

    @contextmanager
    def _watching(self) -> Iterator[list[Tensor]]:
        """While it lasts, observers see what enters their matrices at the places that the list's one tensor names."""
        places: list[Tensor] = []
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        watched = [
            (module, self.observers[name])
            for module in self.model.modules()
            if isinstance(module, nn.Linear) and (name := names[id(module.weight)]) in self.observers
        ]

        def watch(observer: Observer) -> Any:
            def see(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                observer.update(inputs[0].flatten(0, 1)[places[0]])

            return see

        handles = [module.register_forward_pre_hook(watch(observer)) for module, observer in watched]
        try:
            yield places
        finally:
            for handle in handles:
                handle.remove()


def prepare(model: Decoder, scheme: Scheme, *, clip: Clip = MINMAX) -> Prepared:
    """Raises InvalidRequestError for a scheme that a folder of this model cannot hold."""
    rtn.check_scheme(model.config, scheme)
    return Prepared(model, scheme, clip)


def calibrated(prepared: Prepared, batches: Iterable[Batch], scratch: Path) -> Prepared:
    """Calibrated on these batches, or by what an earlier call kept in `scratch`."""
    kept = scratch / "inputs.safetensors"
    if not prepared.observers:
        return prepared
    if kept.is_file():
        prepared.merge(load_file(kept))
        return prepared
    prepared.calibrate(batches)
    scratch.mkdir(parents=True, exist_ok=True)
    staging = kept.with_suffix(".part")
    save_file(prepared.state(), staging)
    staging.replace(kept)
    return prepared


def with_statics(weights: Mapping[str, QuantizedWeight], statics: Statics) -> dict[str, QuantizedWeight]:
    """The matrices with the scales of their inputs, where these have any."""
    found = dict(weights)
    for name, (scale, zero) in statics.items():
        if name not in found:
            raise InvalidRequestError(f"{name[:200]} has a scale of its inputs and no codes")
        found[name] = dataclasses.replace(found[name], input_scale=scale, input_zero=zero)
    return found


def _static(scheme: Scheme) -> ActivationFormat | None:
    known = scheme.activations
    return known if known is not None and not known.dynamic else None
