"""The quantized matrices of a folder, checked when it is opened and unpacked when they are asked for.

Shapes: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from smelt.checkpoint.compressed_tensors import EMBEDDING, HEAD, Storage
from smelt.checkpoint.packing import unpack, words_per_row
from smelt.checkpoint.quantized import QuantizedWeight, num_groups
from smelt.core.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smelt.checkpoint.weights import Weights
    from smelt.core.decoder import DecoderConfig

_FLOATS = frozenset({"F32", "BF16", "F16"})


def input_part(name: str, what: str) -> str:
    """The tensor that says how inputs of a matrix are rounded; `what` is scale or zero_point."""
    return f"{name.removesuffix('.weight')}.input_{what}"


class StoredMatrices(Mapping[str, QuantizedWeight]):
    """The quantized matrices of a folder by tensor name, unpacked anew on every access.

    What the headers and the small tensors say is checked when it is made, codes and scales when they are read.
    `parts` are all the tensors that belong to them. Raises CheckpointError, saying which tensor is at fault.
    """

    def __init__(self, weights: Weights, storage: Mapping[str, Storage], config: DecoderConfig) -> None:
        self._weights, self._storage = weights, storage
        self._shapes = {name: (shape[0], shape[1]) for name, shape in config.tensor_shapes().items() if name in storage}
        self.parts = frozenset(part for name in storage for part in self._check(name))
        if config.tie_embeddings and EMBEDDING in storage:
            self.parts |= self._check_head_copy()

    def __getitem__(self, name: str) -> QuantizedWeight:
        kept, (rows, width) = self._storage[name], self._shapes[name]
        groups = num_groups(kept.weights, width)
        if kept.packing == "pack-quantized":
            codes = unpack(self._weights.stored(f"{name}_packed"), kept.weights.bits, width)
        else:
            codes = np.ascontiguousarray(self._weights.stored(name))
        zeros = None if kept.weights.symmetric else self._zeros(name, kept, (rows, groups))
        for what in (codes, zeros):
            if (
                what is not None
                and what.size
                and not kept.weights.lowest <= what.min() <= what.max() <= kept.weights.highest
            ):
                raise CheckpointError(f"weights: {name} has codes beyond {kept.weights.bits} bits")
        scales = self._weights[f"{name}_scale"].reshape(-1, groups)
        if not np.isfinite(scales).all():
            raise CheckpointError(f"weights: {name}_scale holds NaN or infinity")
        static = kept.activations is not None and not kept.activations.dynamic
        return QuantizedWeight(
            format=kept.weights,
            codes=codes,
            scales=np.ascontiguousarray(np.broadcast_to(scales, (rows, groups)), dtype=np.float32),
            zeros=zeros,
            input_scale=self._input_scale(name) if static else None,
            input_zero=self._input_zero(name, kept) if static else 0,
        )

    def __contains__(self, name: object) -> bool:
        return name in self._storage

    def __iter__(self) -> Iterator[str]:
        return iter(self._storage)

    def __len__(self) -> int:
        return len(self._storage)

    def shape(self, name: str) -> tuple[int, int]:
        """[O, I] of a matrix, nothing read."""
        return self._shapes[name]

    def _zeros(self, name: str, kept: Storage, shape: tuple[int, int]) -> NDArray[np.int8]:
        stored = self._weights.stored(f"{name}_zero_point")
        if stored.dtype == np.dtype("<i4"):
            stored = unpack(np.ascontiguousarray(stored.T), kept.weights.bits, shape[0]).T
        return np.ascontiguousarray(np.broadcast_to(stored.reshape(-1, shape[1]), shape), dtype=np.int8)

    def _input_scale(self, name: str) -> float:
        scale = float(self._weights[input_part(name, "scale")].reshape(()))
        if not (math.isfinite(scale) and scale > 0):
            raise CheckpointError(f"weights: {input_part(name, 'scale')} is {scale:g}; sought a finite number above 0")
        return scale

    def _input_zero(self, name: str, kept: Storage) -> int:
        if kept.activations is None or kept.activations.symmetric:
            return 0
        zero = int(self._weights.stored(input_part(name, "zero_point")).reshape(()))
        if not -128 <= zero <= 127:
            raise CheckpointError(f"weights: {input_part(name, 'zero_point')} is {zero}; sought -128..127")
        return zero

    def _check(self, name: str) -> list[str]:
        """The parts of one matrix, of which each has the type and shape that its format calls for."""
        kept, (rows, width) = self._storage[name], self._shapes[name]
        bits, groups = kept.weights.bits, num_groups(kept.weights, width)
        if kept.weights.group_size is not None and width % kept.weights.group_size:
            raise CheckpointError(f"weights: {name} has {width} inputs, no multiple of {kept.weights.group_size}")
        packed = kept.packing == "pack-quantized"
        scales: list[tuple[int, ...]] = [(rows, groups)]
        scales += [(rows,), (1,), (), (1, 1)] if kept.weights.group_size is None else []
        sought: dict[str, tuple[frozenset[str], list[tuple[int, ...]]]] = {f"{name}_scale": (_FLOATS, scales)}
        if packed:
            sought[f"{name}_packed"] = (frozenset({"I32"}), [(rows, words_per_row(width, bits))])
            sought[f"{name}_shape"] = (frozenset({"I64", "I32"}), [(2,)])
            words = words_per_row(rows, bits) if self._is(f"{name}_zero_point", "I32") else rows
            zeros: list[tuple[int, ...]] = [(words, groups)]
        else:
            sought[name] = (frozenset({"I8"}), [(rows, width)])
            zeros = scales
        if not kept.weights.symmetric:
            sought[f"{name}_zero_point"] = (frozenset({"I8", "I32"} if packed else {"I8"}), zeros)
        if kept.activations is not None and not kept.activations.dynamic:
            sought[input_part(name, "scale")] = (_FLOATS, [(1,), ()])
            if not kept.activations.symmetric:
                sought[input_part(name, "zero_point")] = (frozenset({"I8", "I32", "I64"}), [(1,), ()])
        for part, (dtypes, shapes) in sought.items():
            self._check_part(part, dtypes, shapes)
        if f"{name}_shape" in sought and self._weights.stored(f"{name}_shape").tolist() != [rows, width]:
            raise CheckpointError(f"weights: {name}_shape does not say [{rows}, {width}], as config.json does")
        return [*sought, *self._needless_zeros(name, sought)]

    def _check_part(self, part: str, dtypes: frozenset[str], shapes: list[tuple[int, ...]]) -> None:
        if part not in self._weights:
            raise CheckpointError(f"weights: {part[:200]} missing; config.json calls for a quantized matrix")
        if self._weights.dtype(part) not in dtypes or self._weights.shape(part) not in shapes:
            found = f"{self._weights.dtype(part)} {list(self._weights.shape(part))}"
            raise CheckpointError(
                f"weights: {part[:200]} is {found}; sought {' or '.join(sorted(dtypes))} {list(shapes[0])}"
            )

    def _is(self, part: str, dtype: str) -> bool:
        return part in self._weights and self._weights.dtype(part) == dtype

    def _needless_zeros(self, name: str, sought: Mapping[str, Any]) -> list[str]:
        """Zero points where the format has none: earlier writers left them there, all of them 0."""
        found = [part for part in (f"{name}_zero_point", input_part(name, "zero_point")) if part not in sought]
        found = [part for part in found if part in self._weights]
        for part in found:
            if self._weights.stored(part).any():
                raise CheckpointError(f"weights: {part} is not 0, though config.json calls its codes symmetric")
        return found

    def _check_head_copy(self) -> frozenset[str]:
        """What the tied head repeats of the embedding; it must be the same."""
        copies = [
            part
            for part in self.parts
            if part.startswith(EMBEDDING) and part.replace(EMBEDDING, HEAD, 1) in self._weights
        ]
        for part in copies:
            if not self._weights.same(part, part.replace(EMBEDDING, HEAD, 1)):
                raise CheckpointError(
                    f"weights: {part.replace(EMBEDDING, HEAD, 1)} differs from {part}, to which it is tied"
                )
        return frozenset(part.replace(EMBEDDING, HEAD, 1) for part in copies)


class Dequantized(Mapping[str, "NDArray[np.float32]"]):
    """Every tensor of a quantized folder in float32: plain ones as they are, matrices as what they stand for."""

    def __init__(self, weights: Weights, quantized: StoredMatrices) -> None:
        self._plain, self._quantized = weights.without(quantized.parts), quantized

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._quantized[name].dequantized() if name in self._quantized else self._plain[name]

    def __contains__(self, name: object) -> bool:
        return name in self._quantized or name in self._plain

    def __iter__(self) -> Iterator[str]:
        yield from self._quantized
        yield from self._plain

    def __len__(self) -> int:
        return len(self._quantized) + len(self._plain)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, nothing read."""
        return self._quantized.shape(name) if name in self._quantized else self._plain.shape(name)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same bytes; never where one is quantized."""
        return one in self._plain and other in self._plain and self._plain.same(one, other)

    def without(self, names: frozenset[str]) -> Dequantized:
        """The same tensors less some plain ones."""
        return Dequantized(self._plain.without(names), self._quantized)
