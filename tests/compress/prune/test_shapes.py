"""The search keeps its limits, comes near its target, and gives the same answer every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smelt.compress.prune.importance import Importance, Lost, Shape, shaped
from smelt.compress.prune.shapes import (
    Bytes,
    Candidate,
    Limits,
    Share,
    Speed,
    Target,
    near,
    probes,
    ranked,
    shapes,
    widths,
)
from smelt.core.cost import Rates, decode_seconds, weight_bytes
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import Scheme, WeightFormat
from tests.tiny import tiny_config

SOURCE = tiny_config(
    "llama", hidden_size=192, intermediate_size=512, num_heads=8, num_kv_heads=4, num_layers=10, vocab_size=1000
)
RATES = Rates(read_gb_s=40.0, multiply_gops=200.0, attention_gflops=50.0, step_s=1e-5)


def importance_of(config: DecoderConfig, seed: int = 0) -> Importance:
    rng = np.random.default_rng(seed)
    return Importance(
        neurons=rng.random((config.num_layers, config.intermediate_size)),
        heads=rng.random((config.num_layers, config.num_heads)),
        hidden=rng.random(config.hidden_size),
        layers=rng.random(config.num_layers),
    )


def decoder(shape: Shape) -> DecoderConfig:
    return shaped(SOURCE, shape, tuple(range(shape.num_layers)))


@given(share=st.floats(0.68, 0.98), width=st.floats(0.1, 0.5), depth=st.floats(0.0, 0.3))
@settings(max_examples=12, deadline=None)
def test_what_is_near_fits_and_keeps_the_limits(share: float, width: float, depth: float) -> None:
    limits, found = Limits(width=width, depth=depth), importance_of(SOURCE)
    try:
        candidates = near(SOURCE, found, Share(of_parameters=share), limits)
    except InvalidRequestError:
        assume(False)
    burdens = [candidate.burden for candidate in candidates]
    assert 0.0 < max(burdens) <= 1.0
    for candidate in candidates:
        shape, config = candidate.shape, decoder(candidate.shape)
        assert candidate.burden == pytest.approx(config.num_parameters / (share * SOURCE.num_parameters))
        assert config.num_parameters >= 2 / 3 * SOURCE.num_parameters
        assert shape.num_layers >= (1 - depth) * 10 - 1e-6
        assert shape.hidden_size >= (1 - width) * 192 - 1e-6 and shape.intermediate_size >= (1 - width) * 512 - 1e-6
        assert shape.num_kv_heads >= (1 - width) * 4 - 1e-6 and shape.heads_per_group >= (1 - width) * 2 - 1e-6
        assert shape.hidden_size % (shape.num_kv_heads * shape.heads_per_group) == 0, (
            "transformers refuses a llama else"
        )
    assert candidates == near(SOURCE, found, Share(of_parameters=share), limits)


@pytest.mark.parametrize(
    ("target", "takes"),
    [
        (Share(of_parameters=0.75), lambda c: c.num_parameters / (0.75 * SOURCE.num_parameters)),
        (Bytes(at_most=6_000_000), lambda c: weight_bytes(c, "bf16") / 6_000_000),
        (
            Bytes(at_most=2_200_000, stored=Scheme(weights=WeightFormat(bits=4, group_size=32))),
            lambda c: weight_bytes(c, Scheme(weights=WeightFormat(bits=4, group_size=32))) / 2_200_000,
        ),
        (Speed(tok_s=6500.0, rates=RATES), lambda c: decode_seconds(c, RATES, 256) * 6500.0),
    ],
    ids=["share", "bytes", "int4 bytes", "tok/s"],
)
def test_every_kind_of_target(target: Target, takes: object) -> None:
    assert target.burden(SOURCE, SOURCE) > 1.0
    for candidate in near(SOURCE, importance_of(SOURCE), target, Limits()):
        assert candidate.burden == pytest.approx(takes(decoder(candidate.shape)))  # type: ignore[operator]
        assert 0.9 < candidate.burden <= 1.0


def test_a_coarse_grid_gives_a_choice_of_shapes_further_below() -> None:
    found, target = importance_of(SOURCE), Share(of_parameters=0.7)
    few = near(SOURCE, found, target, Limits(tolerance=0.001))
    many = near(SOURCE, found, target, Limits(tolerance=0.001), enough=len(few) + 20)
    assert len(many) > len(few) and {c.shape for c in few} <= {c.shape for c in many}
    assert min(candidate.burden for candidate in many) > 0.9


@pytest.mark.parametrize(
    ("share", "limits", "says"),
    [
        (1.0, Limits(), "nothing to prune"),
        (0.5, Limits(), "several shots"),
        (0.7, Limits(width=1.0), "limits.width is 1.0"),
        (0.7, Limits(tolerance=0.0), "limits.tolerance"),
        (0.7, Limits(multiple=0), "limits.multiple"),
    ],
)
def test_targets_that_cannot_be_met_say_why(share: float, limits: Limits, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        near(SOURCE, importance_of(SOURCE), Share(of_parameters=share), limits)


def test_widths_suit_the_size_and_favour_32() -> None:
    assert widths(4096, Limits()) == list(range(2560, 4097, 256))
    assert widths(512, Limits()) == [320, 352, 384, 416, 448, 480, 512]
    assert widths(192, Limits()) == [128, 160, 192]
    assert widths(48, Limits()) == [32, 40, 48]
    assert widths(192, Limits(), 6) == [120, 144, 168, 192], "six heads leave no other multiple of 32"
    assert widths(100, Limits(multiple=25)) == [75, 100]
    assert widths(96, Limits(width=0.0)) == [96]


def test_a_probe_cuts_one_axis_alone() -> None:
    whole = Shape.of(SOURCE)
    found = probes(SOURCE, Limits())
    assert set(found) == {"layers", "hidden", "neurons", "heads"}
    for shape in found.values():
        assert sum(getattr(shape, name) != getattr(whole, name) for name in Shape.__slots__) == 1
    assert set(probes(tiny_config("llama", num_kv_heads=1, num_heads=1, num_layers=2), Limits())) == {
        "hidden",
        "neurons",
    }


def test_the_rank_is_by_what_is_lost_at_its_price() -> None:
    whole, none = Shape.of(SOURCE), Lost(layers=0.0, hidden=0.0, neurons=0.0, heads=0.0)
    thin = Candidate(shape=replace(whole, hidden_size=160), lost=replace(none, hidden=0.1), burden=1.0)
    flat = Candidate(shape=replace(whole, num_layers=9), lost=replace(none, layers=0.2), burden=1.0)
    assert ranked([thin, flat], {"hidden": 3.0, "layers": 1.0}, 1) == [flat]
    assert ranked([thin, flat], {"hidden": 1.0, "layers": 1.0}, 2) == [thin, flat]
    assert ranked([thin, flat], {}, 2) == ranked([flat, thin], {}, 2), "ties do not depend on the order"


def test_every_shape_is_enumerated_once() -> None:
    found = list(shapes(SOURCE, Limits()))
    assert len(found) == len(set(found)) == (3 + 4) * 7 * 3  # widths with 8 heads and with 6, MLPs, depths
    assert Shape.of(SOURCE) in found


def test_no_width_is_left_that_the_remaining_heads_do_not_divide() -> None:
    """The source's own width included: 200 goes with ten heads and with eight, not with six."""
    config = tiny_config("llama", hidden_size=200, intermediate_size=256, num_heads=10, num_kv_heads=5)
    found = [(shape.num_kv_heads * shape.heads_per_group, shape.hidden_size) for shape in shapes(config, Limits())]
    assert {heads for heads, hidden in found if hidden == 200} == {10, 8}
    assert all(hidden % heads == 0 for heads, hidden in found)
    free = replace(config, family="qwen2")
    assert {6, 8, 10} == {s.num_kv_heads * s.heads_per_group for s in shapes(free, Limits()) if s.hidden_size == 200}
