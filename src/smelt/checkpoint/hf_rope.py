"""Rotary embeddings in a Hugging Face config: both spellings, in and out.

Until transformers 4 a config says `rope_theta` and `rope_scaling`, Gemma 3 also `rope_local_base_freq`; since
transformers 5 it says `rope_parameters`, for Gemma 3 one per kind of layer. Folders we save use the older spelling
where it can say everything, because every reader knows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from smelt.checkpoint.config_reader import ConfigReader
from smelt.core.decoder import DecoderConfig, RopeConfig
from smelt.core.errors import CheckpointError

KINDS = get_args(get_type_hints(RopeConfig)["scaling"])
_REASONS = {
    "mrope_section": "multimodal rotary embeddings",
    "short_factor": "LongRoPE",
    "long_factor": "LongRoPE",
}


def read_rope(values: Mapping[str, Any], *, base: float | None, context_len: int, where: str) -> RopeConfig:
    """One rope section (`rope_scaling`, `rope_parameters` or a part of it); `base` stands in for its rope_theta.

    `original_max_position_embeddings` defaults to the context length, as in transformers. Raises
    CheckpointError for malformed values, UnsupportedError for unknown kinds and keys.
    """
    reader = ConfigReader(values, f"config.json: {where}.")
    kinds = {reader.take(key) for key in ("rope_type", "type") if reader.has(key)}
    kind = kinds.pop() if len(kinds) == 1 else "default" if not kinds else str(sorted(map(str, kinds)))
    if kind not in KINDS:
        raise reader.refuse("rope_type", kind, f"known kinds are {', '.join(KINDS)}")
    if base is not None and reader.has("rope_theta") and reader.number("rope_theta") != base:
        raise reader.wrong("rope_theta", values["rope_theta"], f"the same as the config's other value {base:g}")
    reader.only("partial_rotary_factor", 1.0, why="rotary embeddings cover the whole head")
    fields: dict[str, Any] = {"base": reader.number("rope_theta", 10000.0 if base is None else base), "scaling": kind}
    if kind != "default":
        fields["factor"] = reader.number("factor")
    if kind in ("llama3", "yarn"):
        fields["original_max_position"] = reader.whole("original_max_position_embeddings", context_len)
    if kind == "llama3":
        fields["low_freq_factor"] = reader.number("low_freq_factor")
        fields["high_freq_factor"] = reader.number("high_freq_factor", above=fields["low_freq_factor"])
    if kind == "yarn":
        fields |= _read_yarn(reader)
    reader.finish(_REASONS)
    return RopeConfig(**fields)


def _read_yarn(reader: ConfigReader) -> dict[str, Any]:
    optional = ("attention_factor", "mscale", "mscale_all_dim")
    fields: dict[str, Any] = {key: reader.number(key) for key in optional if reader.has(key)}
    fields["beta_fast"] = reader.number("beta_fast", 32.0)
    fields["beta_slow"] = reader.number("beta_slow", 1.0)
    fields["truncate"] = reader.flag("truncate", True)
    return fields


def read_ropes(config: ConfigReader, context_len: int) -> tuple[RopeConfig, ...]:
    """The rotary embedding of a model that has one."""
    base = config.number("rope_theta") if config.has("rope_theta") else None
    return (read_rope(_one_section(config), base=base, context_len=context_len, where="rope_parameters"),)


def read_gemma_ropes(config: ConfigReader, context_len: int) -> tuple[RopeConfig, RopeConfig]:
    """Gemma 3's two: [0] of the global layers (base 1e6 unless said), [1] of the sliding ones (base 1e4)."""
    full_base = config.number("rope_theta") if config.has("rope_theta") else None
    local_base = config.number("rope_local_base_freq") if config.has("rope_local_base_freq") else None
    section = _one_section(config)
    both = {"full_attention", "sliding_attention"}
    if "rope_type" in section or "type" in section or "rope_theta" in section:
        section = {"full_attention": section}
    elif unknown := set(section) - both:
        raise config.refuse("rope_parameters", sorted(unknown), f"known kinds of layer are {', '.join(sorted(both))}")
    ropes = []
    for kind, base, default in (("full_attention", full_base, 1e6), ("sliding_attention", local_base, 1e4)):
        values = section.get(kind) or {}
        if not isinstance(values, dict):
            raise config.wrong("rope_parameters", values, "one object per kind of layer")
        if base is None and values.get("rope_theta") is None:
            base = default
        ropes.append(read_rope(values, base=base, context_len=context_len, where=f"rope_parameters.{kind}"))
    return ropes[0], ropes[1]


def check_ropes(config: DecoderConfig) -> None:
    """Raise CheckpointError where the numbers, each in range, give frequencies that are not."""
    for rope in config.ropes:
        try:
            usable = all(map(math.isfinite, [*rope.inv_freq(config.head_dim), rope.cos_sin_factor()]))
        except (ValueError, OverflowError, ZeroDivisionError):
            usable = False
        if not usable:
            raise CheckpointError(f"config.json: these rotary parameters give no finite frequencies: {rope}")


def _one_section(config: ConfigReader) -> dict[str, Any]:
    new, old = config.section("rope_parameters"), config.section("rope_scaling")
    if new and old and new != old:
        raise config.refuse("rope_scaling", old, "it contradicts rope_parameters; keep one of them")
    return new or old or {}


def write_rope(rope: RopeConfig) -> dict[str, Any] | None:
    """`rope_scaling` for this embedding, without its base; None for a plain one."""
    if rope.scaling == "default":
        return None
    section: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("llama3", "yarn"):
        section["original_max_position_embeddings"] = rope.original_max_position
    if rope.scaling == "llama3":
        section |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling == "yarn":
        section |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        for key in ("attention_factor", "mscale", "mscale_all_dim"):
            if (value := getattr(rope, key)) is not None:
                section[key] = value
    return section


def write_ropes(ropes: tuple[RopeConfig, ...]) -> dict[str, Any]:
    """The config keys for one embedding, or for Gemma 3's two (global first)."""
    keys: dict[str, Any] = {"rope_theta": ropes[0].base, "rope_scaling": write_rope(ropes[0])}
    if len(ropes) == 1:
        return keys
    if ropes[1].scaling == "default":
        return keys | {"rope_local_base_freq": ropes[1].base}
    kinds = ("full_attention", "sliding_attention")
    sections = [{"rope_type": "default", "rope_theta": rope.base, **(write_rope(rope) or {})} for rope in ropes]
    return {"rope_parameters": dict(zip(kinds, sections, strict=True))}
