"""What zeros truly save: bytes in forms that know zeros, and the time of a product. Nothing here is estimated.

A folder stores zeros like other numbers and dense kernels multiply by them, so a sparse model is as large and as slow
as it was until something else reads it. Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import math
import time
import warnings
import zlib
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smelt.checkpoint.safetensors import FloatDtype, encode
from smelt.compress.sparse.masks import Pattern

_ITEM_BYTES: Mapping[FloatDtype, int] = {"F32": 4, "BF16": 2, "F16": 2}
_ROUNDS = 9
_ROUND_S = 0.01  # at least so long is a product repeated for one sample


def sparsity(matrices: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """By matrix the share of its weights that are zero."""
    return {name: 1.0 - int(np.count_nonzero(matrix_OI)) / matrix_OI.size for name, matrix_OI in matrices.items()}


def stored_bytes(
    matrices: Iterable[NDArray[np.float32]], dtype: FloatDtype, pattern: Pattern | None = None
) -> dict[str, int]:
    """Bytes of all matrices in each form, values as `dtype`.

    dense: every weight. zip: dense, deflated at level 6. csr: values, a column index each (2 bytes up to 65,536
    columns), a 4-byte offset a row. bitmap: values and a bit a weight. pattern, where there is one: values, and the
    places of the kept within their group.
    """
    item = _ITEM_BYTES[dtype]
    total = dict.fromkeys(["dense", "zip", "csr", "bitmap", *([] if pattern is None else ["pattern"])], 0)
    for matrix_OI in matrices:
        num_rows, num_cols = matrix_OI.shape
        kept = int(np.count_nonzero(matrix_OI))
        total["dense"] += matrix_OI.size * item
        total["zip"] += len(zlib.compress(encode(matrix_OI.reshape(-1), dtype).tobytes(), 6))
        total["csr"] += kept * (item + (2 if num_cols <= 1 << 16 else 4)) + 4 * (num_rows + 1)
        total["bitmap"] += kept * item + -(-matrix_OI.size // 8)
        if pattern is not None:
            groups = matrix_OI.size // pattern.of
            place_bits = math.ceil(math.log2(pattern.of))
            total["pattern"] += groups * pattern.kept * item + -(-groups * pattern.kept * place_bits // 8)
    return total


def product_times(before_OI: NDArray[np.float32], after_OI: NDArray[np.float32]) -> dict[str, float]:
    """Microseconds of a product with one token: the dense kernel on both matrices, and a CSR kernel on the second.

    The three take turns, and each figure is the median of its turns, so that a busy machine is busy for all.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        forms: dict[str, Any] = {
            "dense_before": torch.from_numpy(np.array(before_OI)),
            "dense_after": torch.from_numpy(np.array(after_OI)),
            "csr_after": torch.from_numpy(np.array(after_OI)).to_sparse_csr(),
        }
        token_I1 = torch.ones(before_OI.shape[1], 1)
        repeats = {name: max(1, round(_ROUND_S / _seconds(form, token_I1, 3))) for name, form in forms.items()}
        samples: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(_ROUNDS):
            for name, form in forms.items():
                samples[name].append(_seconds(form, token_I1, repeats[name]))
    return {name: round(median(found) * 1e6, 3) for name, found in samples.items()}


def _seconds(matrix: Any, token_I1: torch.Tensor, repeats: int) -> float:
    """Of one product, the mean of some in a row."""
    began = time.perf_counter()
    for _ in range(repeats):
        matrix @ token_I1
    return max(1e-9, (time.perf_counter() - began) / repeats)
