"""From a decoder's configuration and tensors to the core's repacked model.

The core knows no checkpoint: it takes matrices and vectors by its own slot names, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smelt.core.decoder import MATRICES
from smelt.core.errors import EngineError, UnsupportedError
from smelt.native.extension import core
from smelt.native.formats import ROUNDED, Integers, Weights, form_of, inputs_of, joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smelt.core.decoder import DecoderConfig

MAX_SIZE = 1 << 24  # of any one dimension; keeps every 32-bit index of the core in range


def build_model(
    config: DecoderConfig, tensors: Mapping[str, NDArray[np.floating]], *, weights: Weights, isa: str | None
) -> Any:
    """A `_core.Model` with every weight in place.

    Raises EngineError for what is missing, misshapen, not finite or in a format the core does not run, and
    UnsupportedError for layers it does not run.
    """
    _check(config)
    try:
        model = core().Model(
            _shape(config),
            [
                (layer.window or 0, layer.rope, config.home(i), layer.residue_rank)
                for i, layer in enumerate(config.layers)
            ],
            [(rope.inv_freq(config.head_dim), rope.cos_sin_factor()) for rope in config.ropes],
            weights != "fp32",
            isa or "",
        )
    except (ValueError, MemoryError) as error:
        raise EngineError(str(error) or "no memory for the weights") from error
    integers = weights if isinstance(weights, Integers) else Integers({})
    for fused in _fused(config):
        if any(name in integers.matrices for _, name in fused.slots):
            _put_integers(model, fused, integers)
    for layer, slot, name in _slots(config):
        if name not in integers.matrices:
            _put(model, layer, slot, name, tensors, np.float32(config.norm_offset if slot.endswith("_norm") else 0.0))
    try:
        model.finish()
    except ValueError as error:
        raise EngineError(str(error)) from error
    return model


def _put(
    model: Any, layer: int, slot: str, name: str, tensors: Mapping[str, NDArray[np.floating]], offset: np.float32
) -> None:
    if name not in tensors:
        raise EngineError(f"tensor {name} is missing")
    array = np.ascontiguousarray(tensors[name], dtype=np.float32)
    if offset:
        array = array + offset
    try:
        (model.put_matrix if array.ndim == 2 else model.put_vector)(layer, slot, array)
    except (ValueError, TypeError) as error:
        raise EngineError(f"tensor {name} of shape {array.shape}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Fused:
    """A matrix of the core and the tensors it is made of, by slot."""

    layer: int
    matrix: str
    slots: tuple[tuple[str, str], ...]


def _fused(config: DecoderConfig) -> Iterator[_Fused]:
    yield _Fused(-1, "embedding", (("embedding", "model.embed_tokens.weight"),))
    if not config.tie_embeddings:
        yield _Fused(-1, "head", (("head", "lm_head.weight"),))
    for i, layer in enumerate(config.layers):
        if layer.weights is not None:
            continue
        names = {stem.partition(".")[2]: f"model.layers.{i}.{stem}_proj.weight" for stem in MATRICES}
        for matrix, slots in (("qkv", "q k v"), ("o", "o"), ("gate_up", "gate up"), ("down", "down")):
            yield _Fused(i, matrix, tuple((slot, names[slot]) for slot in slots.split()))


def _put_integers(model: Any, fused: _Fused, integers: Integers) -> None:
    """A fused matrix in the form that its quantized parts join in; a part that comes as floats is put by `_put`."""
    parts = {name: integers.matrices[name] for _, name in fused.slots if name in integers.matrices}
    forms = [form_of(name, part) for name, part in parts.items()]
    form = joined(forms if len(parts) == len(fused.slots) else [*forms, ROUNDED])
    inputs = inputs_of(list(parts), list(parts.values()), integers.activations if fused.layer >= 0 else None)
    kind = core()
    try:
        model.refit(
            fused.layer,
            fused.matrix,
            kind.Format(form.bits, form.units_per_scale, form.has_zeros, form.float_scales),
            kind.Input(inputs.kind, inputs.symmetric, inputs.scale, inputs.zero),
        )
        for slot, name in fused.slots:
            if name not in parts:
                continue
            part = parts[name]
            zeros = None if part.zeros is None else np.ascontiguousarray(part.zeros, np.int8)
            model.put_codes(
                fused.layer,
                slot,
                np.ascontiguousarray(part.codes, np.int8),
                np.ascontiguousarray(part.scales, np.float32),
                zeros,
                part.format.group_size or part.codes.shape[1],
                part.format.bits,
            )
    except (ValueError, TypeError) as error:
        raise EngineError(f"{' and '.join(parts)}: {error}") from error


def _slots(config: DecoderConfig) -> Iterator[tuple[int, str, str]]:
    """(layer or -1, slot, tensor name) of everything the core must be given."""
    yield -1, "embedding", "model.embed_tokens.weight"
    yield -1, "final_norm", "model.norm.weight"
    if config.num_privileges:
        yield -1, "privileges", "model.embed_privileges.weight"
    if not config.tie_embeddings:
        yield -1, "head", "lm_head.weight"
    for i in range(config.num_layers):
        p = f"model.layers.{i}."
        for stem in MATRICES:
            slot = stem.partition(".")[2]
            if config.layers[i].weights is None:
                yield i, slot, f"{p}{stem}_proj.weight"
            if config.has_bias(stem):
                yield i, f"{slot}_bias", f"{p}{stem}_proj.bias"
            if config.layers[i].residue_rank:
                yield i, f"{slot}_reduce", f"{p}{stem}_residue.reduce"
                yield i, f"{slot}_expand", f"{p}{stem}_residue.expand"
        if config.layers[i].entry_bias:
            yield i, "entry", f"{p}entry.bias"
        yield i, "attn_norm", f"{p}input_layernorm.weight"
        if config.post_norms:
            yield i, "attn_post_norm", f"{p}post_attention_layernorm.weight"
            yield i, "mlp_norm", f"{p}pre_feedforward_layernorm.weight"
            yield i, "mlp_post_norm", f"{p}post_feedforward_layernorm.weight"
        else:
            yield i, "mlp_norm", f"{p}post_attention_layernorm.weight"
        if config.qk_norm:
            yield i, "q_norm", f"{p}self_attn.q_norm.weight"
            yield i, "k_norm", f"{p}self_attn.k_norm.weight"


def _shape(config: DecoderConfig) -> Any:
    shape = core().Shape()
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim"):
        setattr(shape, field, getattr(config, field))
    for field in ("context_len", "norm_eps", "embedding_scale", "attention_scale", "tie_embeddings"):
        setattr(shape, field, getattr(config, field))
    if config.num_privileges:
        shape.num_privileges = config.num_privileges
    shape.gelu = config.activation == "gelu_tanh"
    return shape


def _check(config: DecoderConfig) -> None:
    """What the core relies on without looking again."""
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_heads * head_dim": config.num_heads * config.head_dim,
        "num_kv_heads": config.num_kv_heads,
        "context_len": config.context_len,
        "number of layers": config.num_layers,
    }
    for name, value in sizes.items():
        if not 1 <= value <= MAX_SIZE:
            raise EngineError(f"{name} is {value}; sought 1..{MAX_SIZE}")
    if config.num_heads % config.num_kv_heads:
        raise EngineError(f"{config.num_heads} heads cannot share {config.num_kv_heads} key/value heads evenly")
    if config.head_dim % 2:
        raise EngineError(f"head_dim is {config.head_dim}; rotary embeddings need an even one")
    for i, layer in enumerate(config.layers):
        if layer.linear is not None:
            raise UnsupportedError(
                f"layer {i} has linear attention ({layer.linear.kind}), which the native core does not run; the torch "
                "runner does"
            )
        if not 0 <= layer.rope < len(config.ropes) or (layer.window is not None and layer.window < 1):
            raise EngineError(f"layer {i} names rope {layer.rope} of {len(config.ropes)} and window {layer.window}")
