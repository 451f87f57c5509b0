"""Which layers are taken by default."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.compress.linear.convert import default_layers
from smelt.core.decoder import LayerConfig
from smelt.core.errors import InvalidRequestError
from tests.tiny import tiny_config


@given(num=st.integers(2, 40), keep=st.floats(0.0, 0.99))
def test_the_share_is_kept_and_the_last_quarter_is_left(num: int, keep: float) -> None:
    try:
        chosen = default_layers(tiny_config(num_layers=num), keep)
    except InvalidRequestError:
        assert num - keep * num < 1
        return
    assert list(chosen) == sorted(set(chosen)) and chosen[-1] < num - num / 4
    assert num - len(chosen) >= keep * num - 1e-6
    assert len(chosen) == min(num - -(-num // 4), int(num - keep * num + 1e-9))


def test_they_are_spread() -> None:
    assert default_layers(tiny_config(num_layers=8), 0.5) == (0, 2, 3, 5)
    assert default_layers(tiny_config(num_layers=12), 0.75) == (1, 4, 7)


def test_layers_that_slide_are_left_alone() -> None:
    gemma = tiny_config("gemma3_text", num_layers=6)
    assert default_layers(gemma, 0.5) == (1,)
    slides = dataclasses.replace(gemma, layers=(LayerConfig(window=8, rope=1),) * 5 + (LayerConfig(),))
    with pytest.raises(InvalidRequestError, match="sought one that sees everything among the first 4 of 6"):
        default_layers(slides, 0.5)
