"""Where a run computes and in which number type: by what the machine measurably does, not by what it is called."""

from __future__ import annotations

import os
import time
from typing import Literal

import torch

from smelt.core.errors import InvalidRequestError
from smelt.model.decoder import Decoder

Precision = Literal["auto", "fp32", "bf16"]


def pick_device(name: str) -> torch.device:
    """`auto`: this process's accelerator where there is one, else the CPU. Raises InvalidRequestError where not."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidRequestError(f"device: sought auto, cpu, cuda or cuda:N, found {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidRequestError(f"device: {name} asked for, but torch finds no accelerator here; use cpu or auto")
    return torch.device("cuda", local) if device.type == "cuda" and device.index is None else device


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type of matrix products, None for float32. Weights, optimizer and losses stay float32 in any case.

    `auto` is float32 on a CPU, where runs are reproducible to the bit, and bf16 on an accelerator that multiplies it
    faster. `bf16` on a CPU is taken at its word only where it is faster too: without bf16 multipliers (AVX2-only
    machines) the products are emulated at under a hundredth of the speed. Raises InvalidRequestError otherwise.
    """
    if precision == "fp32" or (precision == "auto" and device.type == "cpu"):
        return None
    gain = bf16_gain(device)
    if gain > 1.0:
        return torch.bfloat16
    if precision == "bf16":
        raise InvalidRequestError(f"precision: bf16 products run at {gain:.2f} times the speed of fp32 here; use fp32")
    return None


def bf16_gain(device: torch.device, rounds: int = 3) -> float:
    """How many times as fast as float32 a bf16 matrix product is here, best of `rounds` (under a tenth of a second)."""
    width = 2048 if device.type == "cuda" else 192  # large enough to fill the device, small enough when emulated

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(width, width, dtype=dtype, device=device)
        best = float("inf")
        for _ in range(rounds + 1):  # the first one warms up
            start = time.perf_counter()
            matrix @ matrix
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
        return best

    return seconds(torch.float32) / seconds(torch.bfloat16)


def compile_layers(model: Decoder) -> None:
    """torch.compile, layer by layer: layers of one shape share one compilation, and sharding and recomputing go on."""
    for layer in model.model.layers:
        layer.compile()
