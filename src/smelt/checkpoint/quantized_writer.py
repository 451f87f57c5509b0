"""Quantized matrices as the tensors of a folder. Shapes: O outputs, I inputs, G groups of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from smelt.checkpoint.compressed_tensors import EMBEDDING, HEAD, Storage, choose_packing, matrix_classes
from smelt.checkpoint.packing import pack
from smelt.checkpoint.quantized import QuantizedWeight, num_groups
from smelt.checkpoint.quantized_reader import input_part
from smelt.checkpoint.safetensors import FloatDtype, StoredDtype, decode, encode
from smelt.core.errors import CheckpointError
from smelt.core.quantization import ActivationFormat, Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smelt.core.decoder import DecoderConfig


def choose_storage(
    quantized: Mapping[str, QuantizedWeight], scheme: Scheme | None, config: DecoderConfig
) -> dict[str, Storage]:
    """How each of these matrices will be stored. Raises CheckpointError where one does not fit `config` or `scheme`.

    scheme None: inputs are static where the matrices have input scales, else in floating point.
    """
    known, shapes, storage = matrix_classes(config), config.tensor_shapes(), {}
    activations = scheme.activations if scheme is not None else None
    for name in [*(n for n in shapes if n in quantized), *(n for n in quantized if n not in shapes)]:
        weight = quantized[name]
        if name not in known:
            raise CheckpointError(f"{name[:200]} is no matrix that a folder of this model holds in few bits")
        if scheme is None and weight.input_scale is not None:
            activations = ActivationFormat(dynamic=False, symmetric=weight.input_zero == 0)
        of_inputs = None if name in (EMBEDDING, HEAD) else activations
        _check_weight(name, weight, shapes[name], of_inputs)
        packing = choose_packing(name, weight.format, of_inputs, with_embedding=EMBEDDING in quantized)
        storage[name] = Storage(packing=packing, weights=weight.format, activations=of_inputs)
    return storage


def _check_weight(name: str, weight: QuantizedWeight, shape: tuple[int, ...], inputs: ActivationFormat | None) -> None:
    found, format, width = tuple(weight.codes.shape), weight.format, shape[-1]
    if found != shape:
        raise CheckpointError(f"{name}: codes have shape {list(found)}, sought {list(shape)}")
    if format.group_size is not None and width % format.group_size:
        raise CheckpointError(
            f"{name}: groups of {format.group_size} do not divide its {width} inputs, and readers know no shorter last "
            "group; take a group size that does, or one scale a row"
        )
    groups = (shape[0], num_groups(format, width))
    if weight.scales.shape != groups or not np.isfinite(weight.scales).all():
        raise CheckpointError(
            f"{name}: sought finite scales of shape {list(groups)}, found {list(weight.scales.shape)}"
        )
    if (weight.zeros is None) != format.symmetric or (weight.zeros is not None and weight.zeros.shape != groups):
        raise CheckpointError(
            f"{name}: sought zero points of shape {list(groups)} where codes are asymmetric, else none"
        )
    for codes in (weight.codes, weight.zeros):
        if codes is not None and (
            codes.dtype != np.int8 or codes.min() < format.lowest or codes.max() > format.highest
        ):
            raise CheckpointError(f"{name}: sought int8 codes {format.lowest}..{format.highest}")
    static = inputs is not None and not inputs.dynamic
    if static != (weight.input_scale is not None):
        raise CheckpointError(f"{name}: sought an input scale where, and only where, inputs are static")


class StoredParts(Mapping[str, "NDArray[Any]"]):
    """The tensors of a quantized folder in their order, packed on access; `dtypes` of those that are not `dtype`."""

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        quantized: Mapping[str, QuantizedWeight],
        storage: Mapping[str, Storage],
        dtype: FloatDtype,
        config: DecoderConfig,
    ) -> None:
        self._tensors, self._quantized, self._storage = tensors, quantized, storage
        self._dtype, self._tied = dtype, config.tie_embeddings
        self._owners: dict[str, str] = {}  # of each stored tensor, the matrix it is a part of
        self.dtypes: dict[str, StoredDtype] = {}
        self._kept: tuple[str, dict[str, NDArray[Any]]] = (
            "",
            {},
        )  # the parts of the matrix read last: they lie together
        for name in config.tensor_shapes():
            if name not in storage:
                self._owners[name] = ""
                continue
            for part, (stored_as, _) in self._parts(name).items():
                self._owners[part] = name
                self.dtypes[part] = stored_as

    def __getitem__(self, part: str) -> NDArray[Any]:
        owner = self._owners[part]
        if not owner:
            return self._tensors[part]
        if self._kept[0] != owner:
            self._kept = (owner, {name: array for name, (_, array) in self._parts(owner).items()})
        return self._kept[1][part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)

    def _parts(self, name: str) -> dict[str, tuple[StoredDtype, NDArray[Any]]]:
        weight, kept = self._quantized[name], self._storage[name]
        bits, packed = kept.weights.bits, kept.packing == "pack-quantized"
        parts: dict[str, tuple[StoredDtype, NDArray[Any]]] = {}
        if packed:
            parts[f"{name}_packed"] = ("I32", pack(weight.codes, bits))
            parts[f"{name}_shape"] = ("I64", np.array(weight.codes.shape, "<i8"))
        else:
            parts[name] = ("I8", np.ascontiguousarray(weight.codes))
        parts[f"{name}_scale"] = (self._holding(weight.scales), weight.scales)
        if weight.zeros is not None and packed:
            parts[f"{name}_zero_point"] = ("I32", np.ascontiguousarray(pack(weight.zeros.T, bits).T))
        elif weight.zeros is not None:
            parts[f"{name}_zero_point"] = ("I8", np.ascontiguousarray(weight.zeros))
        if weight.input_scale is not None and kept.activations is not None:
            scale = np.array([weight.input_scale], np.float32)
            parts[input_part(name, "scale")] = (self._holding(scale), scale)
            if not kept.activations.symmetric:
                parts[input_part(name, "zero_point")] = ("I8", np.array([weight.input_zero], np.int8))
        if name == EMBEDDING and self._tied:
            parts |= {p.replace(EMBEDDING, HEAD, 1): found for p, found in parts.items() if p != name}
        return parts

    def _holding(self, values: NDArray[np.float32]) -> FloatDtype:
        """The folder's type where it holds the values exactly, else F32."""
        if np.abs(values).max(initial=0.0) > 65504.0 or self._dtype == "F32":
            return "F32"
        return self._dtype if np.array_equal(decode(encode(values, self._dtype), self._dtype), values) else "F32"
