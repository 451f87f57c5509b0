"""NativeRunner: core.step's Runner over the C++ core."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from smelt.core.errors import EngineError
from smelt.core.step import StepResult
from smelt.native.extension import core
from smelt.native.formats import Integers, Weights
from smelt.native.machine import choose_threads
from smelt.native.weights import build_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from smelt.core.decoder import DecoderConfig
    from smelt.core.step import F32, StepBatch

BLOCK_SIZES = (16, 32, 64)


class NativeRunner:
    """A decoder on this machine's processor. One native call a step, the interpreter lock released during it.

    weights "w8": 8-bit weights in groups of 32 and int8 activations; "fp32": exact; Integers: matrices that come in few
    bits run as they are, the others as with "w8", and `tensors` need not have the former. The pool of num_blocks *
    block_size tokens of keys and values takes memory only as it is written. num_threads None: what the machine grants
    (machine.choose_threads). isa None: the best instruction set found; "portable" forces the fallback.

    Tensors are read one by one and repacked; nothing of `tensors` is kept. A result depends on nothing but its own
    sequence: not on batch mates, chunks or threads. Raises EngineError for a core that is not built, a tensor that is
    missing, misshapen or not finite, and arguments out of range.
    """

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Mapping[str, NDArray[np.floating]],
        *,
        weights: Weights = "w8",
        num_blocks: int,
        block_size: int = 16,
        num_threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        if not (isinstance(weights, Integers) or weights in ("fp32", "w8")):
            raise EngineError(f"weights are {weights!r}; sought 'fp32' or 'w8', or Integers")
        if block_size not in BLOCK_SIZES:
            raise EngineError(f"block_size is {block_size}; sought one of {BLOCK_SIZES}")
        if num_blocks < 1 or num_blocks * block_size >= 2**31:
            raise EngineError(f"num_blocks is {num_blocks}; sought at least 1 and fewer than 2^31 tokens in all")
        if num_threads is not None and not 1 <= num_threads <= 256:
            raise EngineError(f"num_threads is {num_threads}; sought 1..256")
        model = build_model(config, tensors, weights=weights, isa=isa)
        self.isa: str = model.isa
        self.weight_bytes: int = model.weight_bytes
        self.num_threads = num_threads or choose_threads().threads
        self._vocab_size, self._block_size, self._num_blocks = config.vocab_size, block_size, num_blocks
        try:
            self._runner = core().Runner(model, num_blocks, block_size, self.num_threads)
        except MemoryError as error:
            wanted = num_blocks * block_size * config.kv_bytes_per_token
            raise EngineError(f"no address space for {wanted} bytes of keys and values; take fewer blocks") from error

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._vocab_size

    @property
    def block_size(self) -> int:
        """Tokens per key/value block."""
        return self._block_size

    @property
    def num_blocks(self) -> int:
        """Blocks in the key/value pool."""
        return self._num_blocks

    def step(self, batch: StepBatch) -> StepResult:
        """Compute the batch, write its keys and values, sample.

        Raises EngineError for a batch that breaks the contract (nothing is computed then), logits that are not finite,
        a mask that allows no token. `stats`: seconds of the native call, threads that took part.
        """
        start = time.perf_counter()
        try:
            found = self._runner.step(batch)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise EngineError(str(error) or "out of memory during a step") from error
        return StepResult(
            token_ids=found[0],
            logprobs=found[1],
            top_ids=found[2],
            top_logprobs=found[3],
            scored_logprobs=found[4],
            scored_top_ids=found[5],
            scored_top_logprobs=found[6],
            stats={"seconds": time.perf_counter() - start, "threads": found[7]},
        )

    def logits(self, batch: StepBatch) -> F32:
        """Logits after every token of the batch, [T, V]; keys and values are written, nothing is drawn. For tests."""
        try:
            found: F32 = self._runner.logits(batch)
        except (ValueError, RuntimeError) as error:
            raise EngineError(str(error)) from error
        return found
