"""Slicing is masking, sorting changes nothing, and the stream's own factor leaves Gemma's tied head alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.compress.prune.masked import masked
from smelt.compress.prune.slice import Kept, check_loads, check_prunable, sliced, sliced_config
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError, UnsupportedError
from smelt.model.decoder import Decoder
from tests.tiny import random_tensors, tiny_config, variants

NAMES = sorted(variants())
AXES = ("layers", "hidden", "neurons", "groups", "heads")


def kept_of(config: DecoderConfig, axes: tuple[str, ...], seed: int = 0) -> Kept:
    """A random part of each of `axes`, everything of the others."""
    rng, whole = np.random.default_rng(seed), Kept.everything(config)
    per_group = config.num_heads // config.num_kv_heads

    def part(count: int, least: int = 1) -> tuple[int, ...]:
        share = max(least, count * 2 // 3)
        return tuple(sorted(int(i) for i in rng.choice(count, share, replace=False)))

    layers = part(config.num_layers) if "layers" in axes else whole.layers
    rows = range(len(layers))
    groups = [part(config.num_kv_heads) if "groups" in axes else whole.groups[0] for _ in rows]
    chosen = [[part(per_group) if "heads" in axes else tuple(range(per_group)) for _ in groups[row]] for row in rows]
    return Kept(
        layers=layers,
        hidden=part(config.hidden_size) if "hidden" in axes else whole.hidden,
        neurons=tuple(part(config.intermediate_size) if "neurons" in axes else whole.neurons[0] for _ in rows),
        groups=tuple(groups),
        heads=tuple(
            tuple(group * per_group + head for group, own in zip(groups[row], chosen[row], strict=True) for head in own)
            for row in rows
        ),
    )


def ids_of(config: DecoderConfig) -> torch.Tensor:
    return torch.randint(2, config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(3))


def double(config: DecoderConfig, tensors: object) -> Decoder:
    return Decoder.from_tensors(config, tensors).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axes", [*((axis,) for axis in AXES), AXES], ids=[*AXES, "all"])
@torch.no_grad()
def test_masked_is_sliced(name: str, axes: tuple[str, ...]) -> None:
    """Every axis and all of them at once, for every family and feature, with gains to repair."""
    config = variants()[name]
    tensors = random_tensors(config, seed=1)
    kept = kept_of(config, axes)
    gains = {"model.norm.weight": 1.3, "model.layers.0.post_attention_layernorm.weight": 0.8}
    small = Decoder.from_tensors(*sliced(config, tensors, kept, gains)).eval()
    whole = Decoder.from_tensors(config, tensors).eval()
    ids = ids_of(config)
    sought = masked(whole, kept, gains)(ids)
    assert (small(ids) - sought).abs().max() < 1e-5 * max(1.0, float(sought.std()))
    assert (whole(ids) - sought).abs().max() > 1e-3, "a mask that changes nothing would prove nothing"


@pytest.mark.parametrize("name", ["llama-tied-biases", "qwen3-yarn-biases", "gemma3"])
@torch.no_grad()
def test_masked_is_sliced_in_float64(name: str) -> None:
    """Algebra, not luck. Gemma's factor moves norm_eps against the stream: it vanishes with norm_eps."""
    config = replace(variants()[name], norm_eps=1e-30)
    tensors = random_tensors(config, seed=2)
    kept = kept_of(config, AXES, seed=5)
    found = double(*sliced(config, tensors, kept))(ids_of(config))
    sought = masked(double(config, tensors), kept)(ids_of(config))
    tolerance = 1e-6 if config.post_norms else 1e-10  # post norms' scaled gains are stored in float32
    assert (found - sought).abs().max() < tolerance


@given(seed=st.integers(0, 10**6), name=st.sampled_from(["llama-tied-biases", "qwen3-yarn-biases", "gemma3"]))
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_order_changes_nothing(seed: int, name: str) -> None:
    """Hidden channels, neurons, groups and heads in any order give the same logits."""
    config, rng = variants()[name], np.random.default_rng(seed)
    tensors = random_tensors(config, seed=3)
    per_group = config.num_heads // config.num_kv_heads

    def shuffled(count: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.permutation(count))

    groups = [shuffled(config.num_kv_heads) for _ in config.layers]
    kept = Kept(
        layers=tuple(range(config.num_layers)),
        hidden=shuffled(config.hidden_size),
        neurons=tuple(shuffled(config.intermediate_size) for _ in config.layers),
        groups=tuple(groups),
        heads=tuple(tuple(g * per_group + h for g in row for h in shuffled(per_group)) for row in groups),
    )
    found, sought = double(*sliced(config, tensors, kept)), double(config, tensors)
    assert (found(ids_of(config)) - sought(ids_of(config))).abs().max() < 1e-10


@torch.no_grad()
def test_the_privileges_table_is_sliced_and_scaled_like_the_embeddings() -> None:
    config = tiny_config("gemma3_text", num_privileges=4)
    tensors = random_tensors(config, seed=4)
    kept = kept_of(config, ("hidden",))
    ids = ids_of(config)
    said = torch.arange(ids.numel()).view_as(ids) % 4
    found = Decoder.from_tensors(*sliced(config, tensors, kept)).eval()(ids, privileges_BT=said)
    sought = masked(Decoder.from_tensors(config, tensors).eval(), kept)(ids, privileges_BT=said)
    assert (found - sought).abs().max() < 1e-5


def test_windows_and_rotary_bases_go_with_their_layers() -> None:
    config = tiny_config("gemma3_text", num_layers=4)  # layer 1 is the global one
    kept = Kept.everything(config)
    kept = replace(kept, layers=(0, 1, 3), neurons=kept.neurons[:3], groups=kept.groups[:3], heads=kept.heads[:3])
    assert sliced_config(config, kept).layers == (config.layers[0], config.layers[1], config.layers[3])
    assert sliced_config(config, kept).layers[1].window is None


def test_the_embedding_scale_is_what_a_reader_computes() -> None:
    config = tiny_config("gemma3_text")
    kept = replace(Kept.everything(config), hidden=tuple(range(32)))
    smaller, tensors = sliced(config, random_tensors(config), kept)
    assert smaller.embedding_scale == 32**0.5
    assert np.array_equal(
        tensors["model.embed_tokens.weight"], random_tensors(config)["model.embed_tokens.weight"][:, :32]
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden": (0, 0)}, "different indices"),
        ({"hidden": ()}, "at least 1"),
        ({"neurons": ((0,), (0, 1), (0,))}, "same number"),
        ({"heads": ((0, 1, 2), (0, 1, 2), (0, 1, 2))}, "as many query heads"),
        ({"groups": ((1, 0),) * 3}, "in its order"),
        ({"layers": (0, 1)}, "for each of 2 layers"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], says: str) -> None:
    config = tiny_config("llama")
    with pytest.raises(InvalidRequestError, match=says):
        sliced_config(config, replace(Kept.everything(config), **change))  # type: ignore[arg-type]


def test_a_width_that_transformers_refuses_is_refused_first() -> None:
    check_loads("qwen2", 50, 4)
    with pytest.raises(InvalidRequestError, match="multiple of 4"):
        check_loads("llama", 50, 4)


def test_layers_that_share_matrices_are_refused() -> None:
    config = tiny_config("llama")
    check_prunable(config)
    shared = replace(config, layers=(*config.layers[:2], replace(config.layers[0], weights=0)))
    with pytest.raises(UnsupportedError, match="before layers are shared"):
        check_prunable(shared)
