"""What a runner refuses, and what it does when several want it at once."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.core.decoder import DecoderConfig, LayerConfig
from smelt.core.errors import EngineError
from smelt.core.step import Runner, StepBatch
from smelt.native import NativeRunner, extension
from tests.native.batches import Chunk, make_batch, make_runner, prompt
from tests.tiny import random_tensors, tiny_config

CONFIG = tiny_config("llama", num_layers=1)
V = CONFIG.vocab_size
RUNNER = make_runner(CONFIG)


def _good() -> list[Chunk]:
    masked = Chunk(ids=[1, 2], table=[4], sample=True, mask=np.ones(V, np.bool_), bias={3: 1.0}, counts={3: 1})
    return [Chunk(ids=prompt(CONFIG, 20), table=[0, 1], sample=True, top_k=2), masked]


def test_runner_keeps_the_contract() -> None:
    runner: Runner = make_runner(CONFIG, num_blocks=7, block_size=32)
    assert (runner.vocab_size, runner.num_blocks, runner.block_size) == (V, 7, 32)
    result = runner.step(make_batch(_good(), V))
    assert result.stats["threads"] >= 1 and result.stats["seconds"] > 0
    assert result.top_ids.shape == (2, 2) and result.scored_top_ids.shape == (0, 2)


WRONG: dict[str, tuple[str, Any]] = {
    "token_ids": ("token_ids\\[0\\] is 96; sought 0..95", [96]),
    "starts": ("starts\\[1\\] is 0; sought at least 1", [0, 0]),
    "next_ids": ("next_ids\\[0\\] is -2", [-2]),
    "first_positions": ("first_positions\\[0\\] is 250; sought 0..236", [250]),
    "block_tables": ("block_tables\\[0\\] is 32 at 0; sought 0..31", [[32]]),
    "temperatures": ("temperatures\\[0\\] is nan", [np.nan]),
    "top_ps": ("top_ps\\[0\\] is 1.5", [1.5]),
    "presence_penalties": ("presence_penalties\\[0\\] is inf", [np.inf]),
    "top_k": ("top_k\\[0\\] is 5000", [5000]),
    "bias_ids": ("bias_ids\\[0\\] is -1", [-1]),
    "bias_values": ("bias_values\\[0\\] is nan", [np.nan]),
    "count_ids": ("count_ids\\[0\\] is 96", [96]),
    "mask_rows": ("mask_rows\\[0\\] is 1; sought -1..0", [1]),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_value_out_of_range_is_named(field: str) -> None:
    runner, batch = make_runner(CONFIG), make_batch(_good(), V)
    message, wrong = WRONG[field]
    array = getattr(batch, field).copy()
    array.reshape(-1)[: np.size(wrong)] = np.ravel(wrong)
    setattr(batch, field, array)
    with pytest.raises(EngineError, match=message):
        runner.step(batch)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(StepBatch)])
def test_a_misshapen_array_is_named(field: str) -> None:
    """Another dtype, another number of axes, not contiguous, no array at all."""
    runner = make_runner(CONFIG)
    array = getattr(make_batch(_good(), V), field)
    strided = [np.repeat(array, 2, axis=0)[::2]] if len(array) > 1 else []
    nothing = [] if field == "privileges" else [None]  # which plain models need none of
    for wrong in (array.astype(np.float64), array[None], *strided, *nothing, [1, 2]):
        batch = make_batch(_good(), V)
        setattr(batch, field, wrong)
        with pytest.raises(EngineError, match=field):
            runner.step(batch)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(StepBatch)])
def test_arrays_that_do_not_fit_each_other_are_refused(field: str) -> None:
    """One entry too many: which of two arrays is to blame is not for the runner to know."""
    runner, batch = make_runner(CONFIG), make_batch(_good(), V)
    array = getattr(batch, field)
    setattr(
        batch,
        field,
        np.concatenate([array, array[..., -1:]], axis=-1)
        if field == "masks"
        else np.resize(array, (len(array) + 1, *array.shape[1:])),
    )
    with pytest.raises(EngineError, match="sought"):
        runner.step(batch)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_batch_crashes(data: st.DataObject) -> None:
    """Any integers in any array: a result or an EngineError, and the next good step is right."""
    runner = RUNNER
    good = runner.step(make_batch(_good(), V)).token_ids
    batch = make_batch(_good(), V)
    for field in data.draw(
        st.lists(st.sampled_from([f.name for f in dataclasses.fields(batch)]), min_size=1, max_size=3)
    ):
        array = getattr(batch, field).copy()
        for _ in range(data.draw(st.integers(1, 3))):
            if array.size:
                place = data.draw(st.integers(0, array.size - 1))
                array.reshape(-1)[place] = data.draw(st.sampled_from([0, 1, 2, 15, 16, 95, 96, 255]))
                if array.dtype == np.int32 and data.draw(st.booleans()):
                    array.reshape(-1)[place] = data.draw(st.sampled_from([-1, -2, 2**31 - 1, -(2**31)]))
        setattr(batch, field, array[: data.draw(st.integers(0, len(array)))] if data.draw(st.booleans()) else array)
    try:
        runner.step(batch)
    except EngineError as error:
        assert str(error)
    assert np.array_equal(runner.step(make_batch(_good(), V)).token_ids, good)


def test_an_empty_batch_is_refused() -> None:
    runner, batch = make_runner(CONFIG), make_batch(_good(), V)
    for field in dataclasses.fields(batch):
        array = getattr(batch, field.name)
        setattr(batch, field.name, array[:1] if field.name.endswith("starts") else array[:0])
    with pytest.raises(EngineError, match="the batch is empty"):
        runner.step(batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 15}, "head_dim is 15"),
        ({"num_heads": 3, "num_kv_heads": 2}, "3 heads cannot share 2"),
        ({"layers": (LayerConfig(rope=1),)}, "layer 0 names rope 1 of 1"),
        ({"layers": (LayerConfig(window=0),)}, "window 0"),
        ({"layers": ()}, "number of layers is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    good = tiny_config("llama", num_layers=1)
    config: DecoderConfig = dataclasses.replace(good, **changes)
    with pytest.raises(EngineError, match=message):
        NativeRunner(config, random_tensors(good), num_blocks=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "w2"}, "sought 'fp32' or 'w8'"),
        ({"block_size": 8}, "block_size is 8"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"isa": "sse9"}, "instruction set sse9"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        make_runner(CONFIG, **options)


@pytest.mark.parametrize("weights", ["fp32", "w8"])
def test_weights_are_checked(weights: Any) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    for wrong, message in (
        (None, f"{name} is missing"),
        (np.zeros((64, 47), np.float32), "sought 64x48"),
        (np.zeros(64, np.float32), "up has|no vector"),
        (np.full((64, 48), np.nan, np.float32), "NaN or infinity"),
    ):
        tensors = random_tensors(CONFIG)
        del tensors[name]
        if wrong is not None:
            tensors[name] = wrong
        with pytest.raises(EngineError, match=message):
            NativeRunner(CONFIG, tensors, weights=weights, num_blocks=1)


def test_half_precision_tensors_are_taken() -> None:
    tensors = {name: array.astype(np.float16) for name, array in random_tensors(CONFIG).items()}
    widened = {name: array.astype(np.float32) for name, array in tensors.items()}
    batch = make_batch([Chunk(ids=[5, 6])], V)
    one, other = (NativeRunner(CONFIG, t, num_blocks=1, num_threads=1).logits(batch) for t in (tensors, widened))
    assert np.array_equal(one, other)


def test_a_large_pool_costs_nothing_until_used() -> None:
    """64 GiB of keys and values, reserved and not touched."""
    config = tiny_config("llama")
    num_blocks = (64 << 30) // (config.kv_bytes_per_token * 16)
    before = _resident_bytes()
    runner = make_runner(config, num_blocks=num_blocks)
    runner.step(make_batch([Chunk(ids=[1, 2, 3], table=[num_blocks - 1], sample=True)], config.vocab_size))
    assert _resident_bytes() - before < 64 << 20


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_interpreter_runs_during_a_step() -> None:
    """A step of some hundred milliseconds: another thread counts meanwhile."""
    config = tiny_config("llama", hidden_size=256, intermediate_size=1024, num_layers=8, context_len=4096)
    runner = make_runner(config, num_blocks=256)
    batch = make_batch([Chunk(ids=prompt(config, 700))], V)
    stopping, ticks = threading.Event(), []

    def count() -> None:
        while not stopping.wait(0.001):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=count)
    thread.start()
    start = time.monotonic()
    runner.step(batch)
    end = time.monotonic()
    stopping.set()
    thread.join()
    assert end - start > 0.02
    assert sum(start < tick < end for tick in ticks) >= 3


def test_two_threads_may_share_a_runner() -> None:
    """Steps are taken one after another; each gets its own result."""
    runner = make_runner(CONFIG, num_threads=2)
    batches = [
        make_batch([Chunk(ids=prompt(CONFIG, 25, i), table=[2 * i, 2 * i + 1], sample=True)], V) for i in range(4)
    ]
    alone = [int(runner.step(batch).token_ids[0]) for batch in batches]
    found: list[set[int]] = [set() for _ in batches]

    def work(i: int) -> None:
        for _ in range(20):
            found[i].add(int(runner.step(batches[i]).token_ids[0]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{token} for token in alone]


def test_more_threads_than_processors_end() -> None:
    """Oversubscribed on purpose: barriers yield and sleep, they do not only spin."""
    config = tiny_config("llama", hidden_size=256, intermediate_size=1024)
    one, many = make_runner(config, num_threads=1), make_runner(config, num_threads=8)
    batch = make_batch([Chunk(ids=prompt(config, 30))], V)
    assert np.array_equal(one.logits(batch), many.logits(batch))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_is_told_and_not_hung() -> None:
    """Threads do not survive a fork; a step in the child would wait for them for ever."""
    runner = make_runner(CONFIG, num_threads=2)
    batch = make_batch([Chunk(ids=[1])], V)
    runner.step(batch)
    child = os.fork()
    if child == 0:
        try:
            runner.step(batch)
        except EngineError as error:
            os._exit(7 if "fork" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_core_that_is_not_built_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(extension.importlib, "import_module", missing)
    with pytest.raises(EngineError, match="run `make setup`"):
        make_runner(CONFIG)
