"""`quantization_config` of a config.json in compressed-tensors' words: what each matrix is stored as.

A group names its targets: a module (`lm_head`), a pattern over module names (`re:.*mlp.*`) or a class (`Linear`); the
more exact wins, and `ignore` wins over all. Its format says where the codes are:

    pack-quantized     several codes in a 32-bit word                    weight_packed, weight_shape
    int-quantized      a byte a code, integer inputs                     weight
    naive-quantized    a byte a code                                     weight

with weight_scale, weight_zero_point where the codes are asymmetric, input_scale and input_zero_point where inputs have
a scale from calibration. Read: integers of 2 to 8 bits with a scale a row or a group. All else is refused by name.
Tied embeddings are stored as naive-quantized: readers share `weight` between the two modules and take from each its own
scale, so only the scale is there twice (docs/checkpoint.md).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from smelt.checkpoint.config_reader import ConfigReader
from smelt.checkpoint.hf_config import from_hf
from smelt.checkpoint.packing import PACKED_BITS
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError
from smelt.core.quantization import ActivationFormat, Observer, Scheme, WeightFormat

KEY = "quantization_config"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Packing = Literal["pack-quantized", "int-quantized", "naive-quantized"]

_MIXED = "mixed-precision"
_HARMLESS = frozenset(
    {"version", "global_compression_ratio", "run_compressed", "dequantize", "use_optimized_inference"}
)
_OBSERVED = frozenset(
    {"observer", "observer_kwargs", "scale_dtype", "zp_dtype"}
)  # how codes were found, not what they say
_PATTERN_CHARS, _PATTERN_REPEATS = 200, 4  # more could keep a folder's reader busy for hours


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """How a folder holds one matrix; activations None: its inputs stay in floating point."""

    packing: Packing
    weights: WeightFormat
    activations: ActivationFormat | None = None


def matrix_classes(config: DecoderConfig) -> dict[str, str]:
    """Every tensor that can be quantized, with the class of the module that other readers hold it in."""
    found = {}
    for name in config.tensor_shapes():
        if name == EMBEDDING:
            found[name] = "Embedding"
        elif name == HEAD or name.endswith("_proj.weight"):
            found[name] = "Linear"
    return found


def choose_packing(
    name: str, weights: WeightFormat, activations: ActivationFormat | None, *, with_embedding: bool
) -> Packing:
    """The smallest form of a matrix that transformers loads; `with_embedding`: the embedding is quantized too.

    A byte a code takes what packing does not: bits that do not divide a byte; an embedding; zero points, which
    transformers 5 unpacks only where all matrices are of one format and inputs in floating point.
    """
    can_unpack = weights.symmetric or (activations is None and not with_embedding)
    as_bytes: Packing = "naive-quantized" if activations is None else "int-quantized"
    if name == EMBEDDING or weights.bits not in PACKED_BITS or not can_unpack:
        return as_bytes
    return "pack-quantized" if weights.bits < 8 or activations is None else as_bytes


def scheme_of(storage: Mapping[str, Storage]) -> Scheme:
    """What most of the layers' matrices are stored as, and the head or the embedding; `storage` is not empty."""
    apart = [kept for name, kept in storage.items() if name in (EMBEDDING, HEAD)]
    inside = Counter(kept for name, kept in storage.items() if name not in (EMBEDDING, HEAD))
    most = inside.most_common(1)[0][0] if inside else apart[0]
    return Scheme(weights=most.weights, head=apart[-1].weights if apart else None, activations=most.activations)


# ------------------------------------------------------------------------------------------------ writing


def write_storage(storage: Mapping[str, Storage], config: DecoderConfig) -> dict[str, Any]:
    """The section for these matrices (by tensor name); all others are left as they are."""
    groups: dict[Storage, list[str]] = {}
    for name, kept in storage.items():
        groups.setdefault(kept, []).append(name)
    inside = Counter(kept for name, kept in storage.items() if name not in (EMBEDDING, HEAD))
    most = inside.most_common(1)[0][0] if inside else None
    # Exact names first: a reader that stops at the first match is then right too.
    written = [
        _group(_named(names if kept != most else [n for n in names if n in (EMBEDDING, HEAD)], config), kept)
        for kept, names in groups.items()
        if kept != most or any(name in (EMBEDDING, HEAD) for name in names)
    ]
    if most is not None:
        written.append(_group(["Linear"], most))
    left = [_module(name) for name, kind in matrix_classes(config).items() if kind == "Linear" and name not in storage]
    if config.tie_embeddings and EMBEDDING not in storage:
        left.append(_module(HEAD))
    formats = list(dict.fromkeys(kept.packing for kept in storage.values()))
    packed_zeros = any(kept.packing == "pack-quantized" and not kept.weights.symmetric for kept in storage.values())
    return {
        "quant_method": "compressed-tensors",
        "format": formats[0] if len(formats) == 1 else _MIXED,
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": group for i, group in enumerate(written)},
        "ignore": left,
        **({"dequantize": True} if packed_zeros else {}),  # transformers unpacks zero points on this way only
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _named(names: Sequence[str], config: DecoderConfig) -> list[str]:
    modules = [_module(name) for name in names]
    return [*modules, _module(HEAD)] if EMBEDDING in names and config.tie_embeddings else modules


def _group(targets: list[str], kept: Storage) -> dict[str, Any]:
    weights = kept.weights
    return {
        "format": kept.packing,
        "targets": targets,
        "weights": {
            "num_bits": weights.bits,
            "type": "int",
            "symmetric": weights.symmetric,
            "strategy": "channel" if weights.group_size is None else "group",
            "group_size": weights.group_size,
            "dynamic": False,
        },
        "input_activations": None if kept.activations is None else _activation_keys(kept.activations),
        "output_activations": None,
    }


def _activation_keys(activations: ActivationFormat) -> dict[str, Any]:
    return {
        "num_bits": activations.bits,
        "type": "int",
        "symmetric": activations.symmetric,
        "strategy": "token" if activations.dynamic else "tensor",
        "group_size": None,
        "dynamic": activations.dynamic,
        **({} if activations.dynamic else {"observer": activations.observer}),
    }


# ------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class _Target:
    text: str
    pattern: re.Pattern[str] | None

    def rank(self, module: str, kind: str) -> int | None:
        """0 for the module itself, 1 for a pattern, 2 for its class, None for none of them."""
        if self.pattern is not None:
            return 1 if self.pattern.match(module) else None
        return 0 if self.text == module else 2 if self.text == kind else None


def read_config(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> tuple[DecoderConfig, dict[str, Storage]]:
    """The decoder of a config.json, and what its matrices are stored as by tensor name, nothing for a plain folder.

    Raises CheckpointError and UnsupportedError as `from_hf` and `read_storage` do.
    """
    section = config.get(KEY)
    decoder = from_hf({key: value for key, value in config.items() if key != KEY}, generation)
    if section is None:
        return decoder, {}
    if not isinstance(section, dict):
        raise CheckpointError(f"config.json: {KEY} must be an object, found {type(section).__name__}")
    return decoder, read_storage(section, decoder)


def read_storage(section: Mapping[str, Any], config: DecoderConfig) -> dict[str, Storage]:
    """What each quantized matrix of `config` is stored as, by tensor name.

    Raises CheckpointError where the section is malformed, UnsupportedError, by name, for what smelt does not read.
    """
    reader = ConfigReader(section, f"config.json: {KEY}.")
    reader.only("quant_method", "compressed-tensors", why="the only quantized folders read are compressed-tensors'")
    if not reader.has("quant_method"):
        reader.take("quant_method")
    everywhere = reader.take("format")
    reader.only("quantization_status", "compressed", "frozen", why="its weights are not stored in few bits")
    reader.only("kv_cache_scheme", why="keys and values are kept in floating point")
    for key in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        reader.only(key, {}, why="smelt reads quantized weights, nothing on top of them")
    ignored = _targets(reader, "ignore", [])
    groups = reader.section("config_groups")
    if not groups:
        raise reader.wrong("config_groups", groups, "an object of at least one group")
    reader.harmless(_HARMLESS)
    reader.finish({})
    found: dict[str, tuple[_Target, Storage]] = {}
    for group, body in groups.items():
        for target, kept in _read_group(str(group), body, everywhere):
            found[target.text] = (target, kept)
    return _resolved(list(found.values()), ignored, config)


def _resolved(
    groups: Sequence[tuple[_Target, Storage]], ignored: Sequence[_Target], config: DecoderConfig
) -> dict[str, Storage]:
    """The most exact target of each matrix; among equals the first by name, as compressed-tensors has it."""
    storage = {}
    for name, kind in matrix_classes(config).items():
        module = _module(name)
        if any(target.rank(module, kind) is not None for target in ignored):
            continue
        ranked = [(rank, t.text, kept) for t, kept in groups if (rank := t.rank(module, kind)) is not None]
        if ranked:
            storage[name] = min(ranked, key=lambda entry: entry[:2])[2]
    return storage


def _read_group(name: str, body: Any, everywhere: Any) -> list[tuple[_Target, Storage]]:
    prefix = f"config.json: {KEY}.config_groups.{name[:40]}."
    reader = ConfigReader(body if isinstance(body, dict) else {"group": body}, prefix)
    reader.only("group", why="schemes by name are not read; sought targets and weights written out")
    reader.only("output_activations", why="outputs are kept in floating point")
    packing = reader.take("format", None if everywhere == _MIXED else everywhere)
    if packing not in get_args(Packing):
        raise reader.refuse("format", packing, f"known are {', '.join(get_args(Packing))}")
    weights = _read_weights(ConfigReader(reader.section("weights") or {}, f"{prefix}weights."))
    if packing == "pack-quantized" and weights.bits not in PACKED_BITS:
        raise reader.refuse("weights.num_bits", weights.bits, f"packed are {', '.join(map(str, PACKED_BITS))}")
    inputs = reader.section("input_activations")
    activations = None
    if inputs is not None:
        activations = _read_activations(ConfigReader(inputs, f"{prefix}input_activations."))
    targets = _targets(reader, "targets")
    reader.finish({})
    return [(target, Storage(packing=packing, weights=weights, activations=activations)) for target in targets]


def _read_weights(reader: ConfigReader) -> WeightFormat:
    reader.only("dynamic", False, why="weights have fixed scales")
    reader.only("actorder", False, "weight", "static", why="columns out of order are not read")
    strategy = _integers(reader)
    size = reader.take("group_size", None)
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    bits = reader.whole("num_bits", 8, at_least=2, at_most=8)
    if strategy == "group":
        size = reader.whole("group_size")
    elif strategy not in ("channel", "tensor") or size not in (None, -1):
        raise reader.refuse("strategy", strategy, "known are channel, tensor, and group with a group_size")
    reader.harmless(_OBSERVED)
    symmetric = reader.flag("symmetric", True)
    reader.finish({})
    return WeightFormat(bits=bits, group_size=size if strategy == "group" else None, symmetric=symmetric)


def _read_activations(reader: ConfigReader) -> ActivationFormat:
    strategy, dynamic = _integers(reader), reader.flag("dynamic", False)
    reader.only("group_size", -1, why="inputs take one scale a token or a tensor")
    reader.only("actorder", False, why="inputs are in order")
    if (strategy or "tensor") != ("token" if dynamic else "tensor"):
        raise reader.refuse("strategy", strategy, "known are token with dynamic, tensor without")
    bits = reader.whole("num_bits", 8)
    if bits != 8:
        raise reader.refuse("num_bits", bits, "inputs are rounded to 8 bits or not at all")
    named = reader.take("observer", None)
    observer: Observer = named if named in get_args(Observer) and not dynamic else "minmax"
    reader.harmless(_OBSERVED)
    symmetric = reader.flag("symmetric", True)
    reader.finish({})
    return ActivationFormat(bits=bits, dynamic=dynamic, symmetric=symmetric, observer=observer)


def _integers(reader: ConfigReader) -> Any:
    """The strategy of a group of integers, None where it is not written down."""
    reader.only("type", "int", why="codes are integers")
    reader.only("block_structure", why="scales are of rows or of groups within them")
    return reader.take("strategy", None)


def _targets(reader: ConfigReader, key: str, default: Any = None) -> list[_Target]:
    texts = reader.take(key, default) if default is not None else reader.take(key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise reader.wrong(key, texts, "a list of strings")
    return [_Target(text, _pattern(reader, key, text) if text.startswith("re:") else None) for text in texts]


def _pattern(reader: ConfigReader, key: str, text: str) -> re.Pattern[str]:
    """A compiled pattern that cannot run away: a few repeats, none of them of a group."""
    body = text.removeprefix("re:")
    repeats = len(re.findall(r"(?<!\\)[*+{]", body))
    if len(body) > _PATTERN_CHARS or repeats > _PATTERN_REPEATS or re.search(r"(?<!\\)\)[*+{]", body):
        raise reader.refuse(key, text, "a pattern may repeat four single characters, and no group")
    try:
        return re.compile(body)
    except re.error as error:
        raise reader.wrong(key, text, f"a regular expression ({error})") from None
