"""What a linearised model is worth, and which of its parts does the work.

Hybrids were found to live in their window alone, with a linear part that could as well be missing (arXiv:2510.05901).
So each part is switched off in turn, and text and recall are measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from smelt.compress.linear.recall import chance, distances_for, recall
from smelt.compress.quality import bits_per_byte
from smelt.compress.stage import Material
from smelt.core.decoder import DecoderConfig, LinearConfig
from smelt.model.decoder import Decoder
from smelt.model.mixer import Mixer

Part = Literal["linear", "window"]
_SAME = 1e-3  # relative: bits per byte that grew by less did not grow
_LOST = 0.1  # of recall: about what 64 rows can tell apart
_PUBLISHED_KEEP = 0.25  # fewer softmax layers cost published hybrids several points of accuracy


@contextmanager
def without(model: Decoder, part: Part) -> Iterator[None]:
    """The part of every linear layer gives nothing while this lasts."""
    mixers = [module for module in model.modules() if isinstance(module, Mixer)]
    for mixer in mixers:
        setattr(mixer, f"without_{part}", True)
    try:
        yield
    finally:
        for mixer in mixers:
            setattr(mixer, f"without_{part}", False)


def worth(
    source: Decoder, made: Decoder, linear: LinearConfig, material: Material, device: torch.device
) -> dict[str, Any]:
    """held_out_bpb and recall: of the source, of the result, and of the result without each of its parts."""
    distances = distances_for(made.config, linear.window)
    bits: dict[str, float] = {}
    recalled: dict[str, Any] = {"distances": list(distances), "chance": chance(made.config, distances)}

    def take(name: str, model: Decoder) -> None:
        bits[name] = bits_per_byte(model, material, device)
        recalled[name] = recall(model, distances)

    take("before", source)
    take("after", made)
    parts: tuple[Part, ...] = ("linear", "window") if linear.kind == "hybrid" else ("linear",)
    for part in parts:
        with without(made, part):
            take(f"without_{part}", made)
    return {"held_out_bpb": bits, "recall": recalled}


def memory(before: DecoderConfig, after: DecoderConfig) -> dict[str, Any]:
    """Bytes of one sequence in float32, and the length from which the linear model takes less."""
    saved = before.kv_bytes_per_token - after.kv_bytes_per_token
    grown = after.state_bytes - before.state_bytes
    return {
        "kv_bytes_per_token": {"before": before.kv_bytes_per_token, "after": after.kv_bytes_per_token},
        "state_bytes": {"before": before.state_bytes, "after": after.state_bytes},
        "break_even_tokens": -(-grown // saved),
    }


def warnings_of(
    facts: Mapping[str, Any], config: DecoderConfig, linear: LinearConfig, row_lens: Sequence[int]
) -> list[str]:
    """Plain sentences about what does not hold. row_lens: tokens of the held-out rows."""
    found = []
    bits, recalled, window = facts["held_out_bpb"], facts["recall"], linear.window
    far = [i for i, distance in enumerate(recalled["distances"]) if distance >= window]
    same_text = bits["without_linear"] <= bits["after"] * (1 + _SAME)
    same_recall = all(recalled["without_linear"][i] > recalled["after"][i] - _LOST for i in far)
    if same_text and same_recall:
        found.append(
            f"without its linear part the model is as good ({bits['without_linear']:.4f} bits per byte against "
            f"{bits['after']:.4f}, recall as before): the part is bypassed, and a sliding window would do the same"
        )
    if linear.kind == "hybrid" and max(row_lens, default=0) <= window:
        found.append(f"no held-out row is longer than the window of {window}: the linear part was not seen at work")
    for i, distance in enumerate(recalled["distances"]):
        if recalled["after"][i] < recalled["before"][i] - _LOST:
            found.append(
                f"recall over {distance} tokens fell from {recalled['before'][i]:.0%} to {recalled['after'][i]:.0%} "
                f"(chance {recalled['chance'][i]:.0%}); distillation on long text brings some of it back"
            )
    softmax = sum(layer.linear is None for layer in config.layers)
    if softmax < _PUBLISHED_KEEP * config.num_layers:
        found.append(
            f"{softmax} of {config.num_layers} layers attend by softmax; published hybrids keep a quarter or more"
        )
    if (even := facts["memory"]["break_even_tokens"]) >= config.context_len:
        found.append(
            f"memory is saved from {even:,} tokens on, and the context is {config.context_len:,}: it saves none"
        )
    found.append("the native core does not run linear attention: served by the torch runner, exact and slow")
    return found
