"""`smelt plan`: unknown fields are errors, shapes change as told, and the numbers are those of core.cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smelt.cli.plan import base_shape, card, changed, given_rates, plan
from smelt.core import cost
from smelt.core.errors import InvalidRequestError
from tests.cli.test_cli import smelt
from tests.tiny import make_tiny_folder

RATES = "40,300,50,15"


def test_a_models_plan_as_json(tmp_path: Path) -> None:
    folder = make_tiny_folder(tmp_path / "m", family="llama")
    done = smelt("plan", folder, "--set", "num_layers=5", "--rates", RATES, "--train-gflops", "100", "--json")
    assert done.returncode == 0, done.stderr
    found, config = json.loads(done.stdout), changed(base_shape(str(folder)), ["num_layers=5"])
    assert found["shape"]["num_layers"] == 5 and found["context_len"] == config.context_len
    assert found["parameters"]["total"] == config.num_parameters
    assert found["weight_bytes"]["bf16"] == 2 * config.num_parameters
    assert found["kv_bytes"]["engine"] == config.context_len * config.kv_bytes_per_token
    seconds = cost.decode_seconds(config, given_rates(RATES), 128)
    assert found["predicted"]["decode_tok_s"] == pytest.approx(1 / seconds)
    assert found["training"]["s_per_million_tokens"] == pytest.approx(cost.training_flops(config, 1024) * 1e6 / 1e11)


def test_the_card_is_for_reading() -> None:
    done = smelt("plan", "house", "--rates", RATES, "--train-gflops", "100", "--context", "2048")
    assert done.returncode == 0, done.stderr
    for word in ("gemma3_text, 12 layers (10 with a window)", "parameters", "int4_g32", "2048 tokens", "decode"):
        assert word in done.stdout


def test_an_unknown_field_is_an_error_that_names_the_known() -> None:
    done = smelt("plan", "house", "--set", "layers=3", "--rates", RATES)
    assert done.returncode == 1
    assert "layers" in done.stderr and "num_layers" in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["hidden_size=0"], "whole number"),
        (["hidden_size=many"], "whole number"),
        (["hidden_size"], "whole number"),
        (["num_layers=2000"], "whole number"),
        (["tie_embeddings=maybe"], "true or false"),
        (["num_heads=5"], "sought a multiple"),
        (["head_dim=63"], "even"),
        (["hidden_size=400"], "multiple of 6"),
    ],
)
def test_values_that_make_no_shape_are_refused(changes: list[str], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        changed(base_shape("house"), changes)


def test_layers_repeat_the_models_pattern_unless_told_otherwise() -> None:
    house = base_shape("house")

    def far(*changes: str) -> list[int]:
        return [i for i, layer in enumerate(changed(house, changes).layers) if layer.window is None]

    assert far() == [5, 11]
    assert far("num_layers=18") == [5, 11, 17]
    assert far("num_layers=8", "global_every=4") == [3, 7]
    assert {layer.window for layer in changed(house, ["window=64"]).layers} == {64, None}
    with pytest.raises(InvalidRequestError, match="no windows"):
        changed(base_shape_without_windows(), ["global_every=2"])


def base_shape_without_windows() -> object:
    from tests.tiny import tiny_config

    return tiny_config("llama")


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,x", "1,2,3,0", "1,2,3,4,5"])
def test_rates_are_four_positive_numbers(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="four positive numbers"):
        given_rates(text)


def test_a_context_beyond_the_shapes_own_is_refused() -> None:
    done = smelt("plan", "house", "--context", "100000", "--rates", RATES)
    assert done.returncode == 1 and "context_len" in done.stderr


def test_a_plan_needs_no_measuring() -> None:
    found = plan(base_shape("house"), 4096, given_rates(RATES), 100.0)
    assert found["flops"]["decode_at_context"] > found["flops"]["decode"]
    assert found["kv_bytes"]["windowed"] < found["kv_bytes"]["engine"]
    assert "tok/s predicted" in card(found)
