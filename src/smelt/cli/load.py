"""From a model's name to a running engine or model, with a progress line while it is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from smelt.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from smelt.core.decoder import DecoderConfig
    from smelt.data.tasks.about import Limits
    from smelt.engine.engine import Engine
    from smelt.generate.llm import LLM


def checked_weights(weights: str) -> Literal["w8", "fp32"]:
    """The weight format, or InvalidRequestError naming the two there are."""
    if weights not in ("w8", "fp32"):
        raise InvalidRequestError(f"--weights {weights}: choose w8 (8-bit, fast) or fp32 (exact)")
    return cast(Literal["w8", "fp32"], weights)


def load_llm(model: str, *, weights: str = "w8", threads: int = 0) -> LLM:
    """The text-level model of a folder, a Hugging Face id or a shipped name. Raises CheckpointError."""
    from smelt.generate.llm import LLM
    from smelt.generate.options import LLMOptions

    return LLM.open(model, options=LLMOptions(weights=checked_weights(weights), threads=threads or None))


def limits_of(model: str) -> Limits:
    """What is true of a folder, a Hugging Face id or a shipped name, for questions about the model itself.

    Its card's name and cutoff (the defaults where it has none), the longest context and answer it is served with where
    memory allows. Raises CheckpointError.
    """
    from smelt.checkpoint import open_checkpoint, resolve_model
    from smelt.data.tasks.about import Limits
    from smelt.generate.options import DEFAULT_MAX_OUTPUT_LEN

    checkpoint = open_checkpoint(resolve_model(model))
    context_len, card = checkpoint.config.context_len, checkpoint.card or {}
    year, month = map(int, str(card["cutoff"]).split("-")) if "cutoff" in card else Limits().cutoff
    return Limits(
        name=str(card.get("name") or Limits().name),
        context_len=context_len,
        max_output_len=min(DEFAULT_MAX_OUTPUT_LEN, context_len),
        cutoff=(year, month),
    )


def load_engine(model: str, *, weights: str = "w8", threads: int = 0) -> tuple[Engine, DecoderConfig, int]:
    """A bare engine over the native runner, its decoder's shape, and the weight bytes one token reads."""
    from smelt.checkpoint import open_checkpoint, resolve_model
    from smelt.engine.engine import Engine
    from smelt.generate.options import LLMOptions, window
    from smelt.native import NativeRunner, native_weights

    checkpoint = open_checkpoint(resolve_model(model))
    config = checkpoint.config
    options = LLMOptions(weights=checked_weights(weights), threads=threads or None)
    limits = window(config, options)
    runner = NativeRunner(
        config,
        checkpoint.tensors,
        weights=native_weights(options.weights, checkpoint.quantized, checkpoint.scheme),
        num_blocks=limits.num_blocks,
        block_size=options.block_size,
        num_threads=options.threads,
    )
    return Engine(runner, context_len=limits.context_len), config, runner.weight_bytes
