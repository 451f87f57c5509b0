"""Few-bit integers in 32-bit words, as compressed-tensors' `pack-quantized` has them.

A code of b bits is stored as code + 2^(b-1), from a word's low bits upwards; a row that does not fill its last word is
padded with zero bits. Only widths that divide a byte: others cross words in one release of that library and leave
gaps in another. Shapes: R rows, C columns, W words of a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PACKED_BITS = (2, 4, 8)


def words_per_row(num_columns: int, bits: int) -> int:
    """W for rows of `num_columns` codes."""
    return -(-num_columns * bits // 32)


def pack(codes_RC: NDArray[np.int8], bits: int) -> NDArray[np.int32]:  # noqa: N803
    """Codes in [-2^(bits-1), 2^(bits-1)) as int32 [R, W]."""
    rows, columns = codes_RC.shape
    per_byte = 8 // bits
    raw = np.zeros((rows, words_per_row(columns, bits) * 4 * per_byte), np.uint8)
    raw[:, :columns] = (codes_RC.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    packed = raw[:, ::per_byte].copy()
    for place in range(1, per_byte):
        packed |= raw[:, place::per_byte] << np.uint8(bits * place)
    return packed.view("<i4")


def unpack(words_RW: NDArray[np.int32], bits: int, num_columns: int) -> NDArray[np.int8]:  # noqa: N803
    """The codes of `pack`, [R, num_columns]. Bits beyond them are not looked at."""
    packed = np.ascontiguousarray(words_RW, dtype="<i4").view(np.uint8)
    per_byte = 8 // bits
    raw = np.empty((packed.shape[0], packed.shape[1], per_byte), np.uint8)
    for place in range(per_byte):
        raw[:, :, place] = (packed >> np.uint8(bits * place)) & np.uint8((1 << bits) - 1)
    flat = raw.reshape(packed.shape[0], -1)[:, :num_columns]
    codes: NDArray[np.int8] = (flat.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    return codes
