"""Which runner serves a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smelt.core.errors import UnsupportedError
from smelt.generate.options import LLMOptions

if TYPE_CHECKING:
    from smelt.checkpoint import Checkpoint
    from smelt.core.step import Runner


def load_runner(checkpoint: Checkpoint, options: LLMOptions, num_blocks: int) -> Runner:
    """The native core; for layers with linear attention, which it does not run, the torch runner: exact and slow.

    Raises EngineError as `NativeRunner` does, UnsupportedError where torch is needed and not installed.
    """
    if any(layer.linear is not None for layer in checkpoint.config.layers):
        return _torch_runner(checkpoint, options, num_blocks)
    from smelt.native import NativeRunner, native_weights

    return NativeRunner(
        checkpoint.config,
        checkpoint.tensors,
        weights=native_weights(options.weights, checkpoint.quantized, checkpoint.scheme),
        num_blocks=num_blocks,
        block_size=options.block_size,
        num_threads=options.threads,
    )


def _torch_runner(checkpoint: Checkpoint, options: LLMOptions, num_blocks: int) -> Runner:
    try:
        from smelt.engine.torch_runner import TorchRunner
    except ImportError as error:
        raise UnsupportedError(
            "the model has layers with linear attention, which the native core does not run; sought torch for the "
            "runner that does, found none: install smelt with the extra `train`"
        ) from error
    return TorchRunner(checkpoint.config, checkpoint.tensors, num_blocks=num_blocks, block_size=options.block_size)
