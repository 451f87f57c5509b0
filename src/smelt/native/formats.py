"""How the core will hold matrices that come in few bits: formats joined where it fuses several into one.

The core multiplies q, k and v as one matrix, and gate and up; one matrix has one format. Every join is exact: codes of
4 bits fit 8, a scale of a group serves each part of it, codes without a zero point have the zero point 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from smelt.core.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smelt.core.quantization import ActivationFormat, Scheme, WeightFormat

UNIT = 32  # inputs whose products the core sums as integers


class QuantizedMatrix(Protocol):
    """What the core reads of a quantized matrix (checkpoint.quantized.QuantizedWeight is one). O outputs, I inputs."""

    @property
    def format(self) -> WeightFormat:
        """Bits, group size, symmetry."""
        ...

    @property
    def codes(self) -> NDArray[np.int8]:
        """[O, I]."""
        ...

    @property
    def scales(self) -> NDArray[np.float32]:
        """[O, groups]."""
        ...

    @property
    def zeros(self) -> NDArray[np.int8] | None:
        """[O, groups], None where the format is symmetric."""
        ...

    @property
    def input_scale(self) -> float | None:
        """Of a static format of the inputs."""
        ...

    @property
    def input_zero(self) -> int:
        """Its zero point."""
        ...


@dataclass(frozen=True, slots=True)
class Integers:
    """Matrices that come in few bits, by tensor name, and how the inputs of those inside the layers are rounded.

    activations None: as the core does by itself, to 8 bits in groups of 32.
    """

    matrices: Mapping[str, QuantizedMatrix]
    activations: ActivationFormat | None = None


Weights = Literal["fp32", "w8"] | Integers


def native_weights(
    weights: Literal["fp32", "w8"], matrices: Mapping[str, QuantizedMatrix], scheme: Scheme | None
) -> Weights:
    """What NativeRunner runs of a checkpoint: its quantized matrices as they are, unless "fp32" is asked for."""
    if weights == "fp32" or not matrices:
        return weights
    return Integers(matrices, scheme.activations if scheme is not None else None)


@dataclass(frozen=True, slots=True)
class Form:
    """bits: 4 or 8. A scale every `units_per_scale` * 32 inputs, float32 or, where that holds all of them, bfloat16."""

    bits: int
    units_per_scale: int
    has_zeros: bool
    float_scales: bool


ROUNDED = Form(8, 1, False, False)  # what the core makes of floats


def form_of(name: str, matrix: QuantizedMatrix) -> Form:
    """The form that holds a matrix as it is. Raises EngineError for groups that the core cannot tell apart."""
    width, group = matrix.codes.shape[1], matrix.format.group_size
    units = -(-width // UNIT)
    if group is not None and group < width:
        if group % UNIT:
            raise EngineError(
                f"{name} has groups of {group} inputs; the core runs multiples of {UNIT} and whole rows. "
                "Run the model with weights='fp32'"
            )
        units = group // UNIT
    return Form(
        bits=4 if matrix.format.bits <= 4 else 8,
        units_per_scale=units,
        has_zeros=matrix.zeros is not None,
        float_scales=bool((np.ascontiguousarray(matrix.scales, np.float32).view(np.uint32) & 0xFFFF).any()),
    )


def joined(forms: Sequence[Form]) -> Form:
    """The narrowest form that holds each of `forms`."""
    return Form(
        bits=max(form.bits for form in forms),
        units_per_scale=math.gcd(*(form.units_per_scale for form in forms)),
        has_zeros=any(form.has_zeros for form in forms),
        float_scales=any(form.float_scales for form in forms),
    )


@dataclass(frozen=True, slots=True)
class Inputs:
    """How the inputs of a matrix are rounded to 8 bits: by groups of 32 as the core does by itself ("group"), by token
    ("token") or by one scale for all ("tensor").
    """

    kind: str = "group"
    symmetric: bool = True
    scale: float = 0.0
    zero: int = 0


def inputs_of(
    names: Sequence[str], matrices: Sequence[QuantizedMatrix], activations: ActivationFormat | None
) -> Inputs:
    """The one rounding in front of matrices that are multiplied as one.

    Raises EngineError where they ask for different ones, or for other than 8 bits.
    """
    if activations is None:
        return Inputs()
    if activations.bits != 8:
        raise EngineError(f"inputs of {activations.bits} bits; the core rounds them to 8")
    if activations.dynamic:
        return Inputs("token", activations.symmetric)
    found = {(matrix.input_scale, matrix.input_zero) for matrix in matrices}
    scale, zero = next(iter(found))
    if len(found) != 1 or scale is None:
        raise EngineError(
            f"{' and '.join(names)} are multiplied as one, so their input scales must be there and the same; "
            f"found {', '.join(str(one) for one, _ in sorted(found, key=str))}"
        )
    return Inputs("tensor", activations.symmetric, scale, zero)
