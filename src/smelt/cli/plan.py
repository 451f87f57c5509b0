"""`smelt plan`: what a shape costs, before a second is spent on it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from smelt.core.cost import Rates
    from smelt.core.decoder import DecoderConfig

TRAINING_SHARE = 0.62
"""Of the float32 matrix rate that a training step reaches here (bench/results/train_throughput.json)."""

DECODE_POSITION, PREFILL_LEN = 128, 512
_WIDTHS = "vocab_size hidden_size intermediate_size num_heads num_kv_heads head_dim".split()
_FIELDS = (*_WIDTHS, "num_layers", "window", "global_every", "context_len", "tie_embeddings")
_MOST = 1 << 24


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What `smelt plan` is told."""

    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face id, a shipped model's name, or house.")] = (
        "spark"
    )
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help=f"Change the shape: key=value; repeat. Keys: {', '.join(_FIELDS)}."),
    ] = None
    context: Annotated[int, typer.Option(help="Tokens of one conversation; 0: the longest there may be.", min=0)] = 0
    rates: Annotated[
        str, typer.Option(help="Another machine's: read GB/s, multiply GOPS, attention GFLOP/s, µs a step; by commas.")
    ] = ""
    train_gflops: Annotated[float, typer.Option(help="float32 products in training; 0: measured here.", min=0)] = 0.0
    threads: Annotated[int, typer.Option(help="0: what the machine allows.", min=0)] = 0
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False


def plan_command(options: PlanOptions) -> None:
    """Print the plan, or one JSON object."""
    config = changed(base_shape(options.model), options.changes or [])
    context_len = options.context or config.context_len
    if context_len > config.context_len:
        raise InvalidRequestError(
            f"--context {context_len}: this shape takes {config.context_len}; raise it with --set context_len=…"
        )
    from smelt.engine.rates import matmul_gflops, measure_rates

    rates = given_rates(options.rates) if options.rates else measure_rates(config, threads=options.threads or None)
    training = options.train_gflops or matmul_gflops() * TRAINING_SHARE
    found = plan(config, context_len, rates, training)
    if options.as_json:
        print(json.dumps({"model": options.model, **found}))
        return
    print(f"{options.model}{' with ' + ', '.join(options.changes) if options.changes else ''}: {_words(config)}")
    print(card(found))


def base_shape(model: str) -> DecoderConfig:
    """A model's shape, or the house's: Gemma 3 at widths of our own. Raises CheckpointError."""
    from smelt.checkpoint import open_checkpoint, resolve_model
    from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig

    if model != "house":
        return open_checkpoint(resolve_model(model)).config
    return DecoderConfig(
        family="gemma3_text",
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_heads=6,
        num_kv_heads=2,
        head_dim=64,
        layers=tuple(LayerConfig(window=None if i % 6 == 5 else 1024, rope=int(i % 6 != 5)) for i in range(12)),
        ropes=(RopeConfig(base=1e6), RopeConfig(base=1e4)),
        context_len=4096,
        norm_offset=1.0,
        activation="gelu_tanh",
        qk_norm=True,
        post_norms=True,
        embedding_scale=384**0.5,
        attention_scale=64**-0.5,
    )


def changed(config: DecoderConfig, changes: Sequence[str]) -> DecoderConfig:
    """The shape with fields replaced. More layers repeat the model's own pattern of windows, fewer cut it off.

    Raises InvalidRequestError for a field that is none, a value out of range, or fields that do not go together.
    """
    values: dict[str, Any] = {}
    for change in changes:
        key, _, text = change.partition("=")
        if key not in _FIELDS:
            raise InvalidRequestError(f"--set {key}: no field of a shape; sought one of {', '.join(_FIELDS)}")
        values[key] = _value(key, text)
    layers = config.layers
    layers = tuple(layers[i % len(layers)] for i in range(values.pop("num_layers", len(layers))))
    window, every = values.pop("window", None), values.pop("global_every", None)
    if every is not None and (window or next((layer.window for layer in layers if layer.window), None)) is None:
        raise InvalidRequestError("--set global_every: this model has no windows; set window too")
    if every is not None or window is not None:
        layers = _windowed(layers, window, every)
    found = dataclasses.replace(config, layers=layers, **values)
    _check(found)
    return found


def _windowed(layers: tuple[Any, ...], window: int | None, every: int | None) -> tuple[Any, ...]:
    """Layers with another window, each `every`th one seeing everything."""
    old = next((layer for layer in layers if layer.window is not None), layers[0])
    far = next((layer for layer in layers if layer.window is None), None)
    near = dataclasses.replace(old, window=window or old.window)
    if every is None:
        return tuple(near if layer.window is not None or far is None else layer for layer in layers)
    everything = far or dataclasses.replace(near, window=None, rope=0)
    return tuple(everything if (i + 1) % every == 0 else near for i in range(len(layers)))


def _value(key: str, text: str) -> int | bool:
    if key == "tie_embeddings":
        if text not in ("true", "false"):
            raise InvalidRequestError(f"--set {key}={text}: sought true or false")
        return text == "true"
    if not text.isdigit() or not 1 <= int(text) <= (1024 if key in ("num_layers", "global_every") else _MOST):
        raise InvalidRequestError(f"--set {key}={text}: sought a whole number from 1 on")
    return int(text)


def _check(config: DecoderConfig) -> None:
    from smelt.compress.prune.slice import check_loads

    if config.num_heads % config.num_kv_heads:
        raise InvalidRequestError(
            f"num_heads {config.num_heads} with num_kv_heads {config.num_kv_heads}: sought a multiple of it"
        )
    if config.head_dim % 2:
        raise InvalidRequestError(f"head_dim {config.head_dim}: sought an even number, as rotary embeddings turn pairs")
    check_loads(config.family, config.hidden_size, config.num_heads)


def given_rates(text: str) -> Rates:
    """Four numbers by commas. Raises InvalidRequestError."""
    from smelt.core.cost import Rates

    try:
        read, multiply, attention, step_us = (float(part) for part in text.split(","))
    except ValueError:
        read = multiply = attention = step_us = 0.0
    if not min(read, multiply, attention, step_us) > 0:
        raise InvalidRequestError(f"--rates {text}: sought four positive numbers, as in 40,300,50,15")
    return Rates(read_gb_s=read, multiply_gops=multiply, attention_gflops=attention, step_s=step_us / 1e6)


def plan(config: DecoderConfig, context_len: int, rates: Rates, training_gflops: float) -> dict[str, Any]:
    """Everything told of a shape. training_gflops: float32 operations a training step reaches, in 10^9 a second."""
    from smelt.core import cost
    from smelt.core.quantization import Scheme, WeightFormat

    counted = cost.parameters(config)
    int8, int4 = WeightFormat(bits=8), WeightFormat(bits=4, group_size=32)
    stored: dict[str, Any] = {
        "fp32": "fp32",
        "bf16": "bf16",
        "int8": Scheme(weights=int8, head=int8),
        "int4_g32": Scheme(weights=int4, head=int8),
        "native_w8": cost.NATIVE_W8,
    }
    row_len = min(1024, config.context_len)
    prefill_len, last = min(PREFILL_LEN, context_len), context_len - 1
    early = min(DECODE_POSITION, last)
    training = cost.training_flops(config, row_len)
    return {
        "shape": {name: getattr(config, name) for name in _WIDTHS} | {"num_layers": config.num_layers},
        "parameters": {"total": counted.total, **asdict(counted)},
        "weight_bytes": {name: cost.weight_bytes(config, how) for name, how in stored.items()},
        "context_len": context_len,
        "kv_bytes": {
            "engine": cost.kv_bytes(config, context_len),
            "windowed": cost.kv_bytes(config, context_len, windowed=True),
        },
        "flops": {
            "decode": cost.decode_flops(config, early),
            "decode_at_context": cost.decode_flops(config, last),
            "prefill": cost.prefill_flops(config, prefill_len),
            "training_per_token": training,
        },
        "rates": asdict(rates),
        "predicted": {
            "decode_tok_s": 1 / cost.decode_seconds(config, rates, early),
            "decode_at_context_tok_s": 1 / cost.decode_seconds(config, rates, last),
            "prefill_tok_s": prefill_len / cost.prefill_seconds(config, rates, prefill_len),
            "prefill_len": prefill_len,
        },
        "training": {"gflops": training_gflops, "s_per_million_tokens": training * 1e6 / (training_gflops * 1e9)},
    }


def _words(config: DecoderConfig) -> str:
    windows = sum(layer.window is not None for layer in config.layers)
    heads = f"{config.num_heads}/{config.num_kv_heads} heads of {config.head_dim}"
    return (
        f"{config.family}, {config.num_layers} layers ({windows} with a window), hidden {config.hidden_size}, "
        f"MLP {config.intermediate_size}, {heads}, vocabulary {config.vocab_size}"
    )


def card(found: dict[str, Any]) -> str:
    """The plan as lines for a person."""
    count, stored, kv = found["parameters"], found["weight_bytes"], found["kv_bytes"]
    flops, speed, rates, training = found["flops"], found["predicted"], found["rates"], found["training"]
    sizes = ", ".join(f"{name} {_size(value)}" for name, value in stored.items())
    machine = f"{rates['read_gb_s']:.0f} GB/s read, {rates['multiply_gops']:.0f} GOPS multiplied"
    return "\n".join(
        (
            f"  parameters  {count['total'] / 1e6:.2f}M: {count['matrices'] / 1e6:.2f}M in layers, "
            f"{count['embeddings'] / 1e6:.2f}M embeddings and head, {count['vectors']} norms and biases",
            f"  weights     {sizes}",
            f"  memory      keys and values of {found['context_len']} tokens: {_size(kv['engine'])} "
            f"({_size(kv['windowed'])} if sliding layers held their windows only)",
            f"  operations  {flops['decode'] / 1e6:.1f} MFLOP a token, {flops['decode_at_context'] / 1e6:.1f} at the "
            f"context's end, {flops['training_per_token'] / 1e6:.1f} in training",
            f"  decode      {speed['decode_tok_s']:.0f} tok/s predicted for one user, "
            f"{speed['decode_at_context_tok_s']:.0f} at the end of the context",
            f"  prefill     {speed['prefill_tok_s']:.0f} tok/s predicted for {speed['prefill_len']} tokens",
            f"  training    {training['s_per_million_tokens']:.0f} s a million tokens at "
            f"{training['gflops']:.0f} GFLOP/s",
            f"  machine     {machine}, {rates['attention_gflops']:.0f} GFLOP/s attended, "
            f"{rates['step_s'] * 1e6:.0f} µs a step",
        )
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"
