"""Tensors that follow from others and are made when they are read, so that no whole model is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.float32]]


class Made(Mapping[str, NDArray[np.float32]]):
    """Tensor name -> float32 array, computed by every access."""

    def __init__(self, makers: Mapping[str, Callable[[], NDArray[np.float32]]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def zeros(shape: tuple[int, ...]) -> Callable[[], NDArray[np.float32]]:
    """Makes a tensor of zeros."""
    return lambda: np.zeros(shape, np.float32)


def reading(tensors: Arrays, name: str) -> Callable[[], NDArray[np.float32]]:
    """Reads one tensor of a mapping."""
    return lambda: tensors[name]
