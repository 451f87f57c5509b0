"""The device and the number type follow what the machine measurably does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from smelt.core.errors import InvalidRequestError
from smelt.train import hardware
from smelt.train.hardware import autocast_dtype, bf16_gain, pick_device
from tests.train.runs import first_gradients, furthest, tiny_run, uneven_run, weights

CPU = torch.device("cpu")


def test_a_cpu_computes_in_float32_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "bf16_gain", lambda device: 0.01)
    assert autocast_dtype("auto", CPU) is None
    assert autocast_dtype("fp32", CPU) is None
    with pytest.raises(InvalidRequestError, match=r"0\.01 times the speed"):
        autocast_dtype("bf16", CPU)
    monkeypatch.setattr(hardware, "bf16_gain", lambda device: 4.0)
    assert autocast_dtype("auto", CPU) is None, "runs on a CPU are reproducible to the bit"
    assert autocast_dtype("bf16", CPU) is torch.bfloat16


def test_the_gain_is_measured() -> None:
    gain = bf16_gain(CPU, rounds=1)
    assert 0 < gain < 1000


def test_devices_by_name() -> None:
    assert pick_device("cpu") == CPU
    for name in ("gpu", "cuda:none"):
        with pytest.raises(InvalidRequestError, match="sought auto, cpu, cuda"):
            pick_device(name)
    if not torch.cuda.is_available():
        assert pick_device("auto") == CPU
        with pytest.raises(InvalidRequestError, match="no accelerator"):
            pick_device("cuda")


def test_narrow_products_give_nearly_the_same_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path under autocast, emulated here: weights and gradients stay float32."""
    monkeypatch.setattr(hardware, "bf16_gain", lambda device: 2.0)
    wide, narrow = (first_gradients(uneven_run(tmp_path, precision=precision)) for precision in ("fp32", "bf16"))
    assert {tensor.dtype for tensor in narrow.values()} == {torch.float32}
    for name, sought in wide.items():
        found = narrow[name]
        cosine = torch.nn.functional.cosine_similarity(found.flatten(), sought.flatten(), dim=0)
        assert cosine > 0.99, name
        assert not torch.equal(found, sought)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # the compiler warns of itself
def test_compiled_layers_give_the_same_gradients(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    plain, compiled = (first_gradients(tiny_run(tmp_path, compile=on)) for on in (False, True))
    assert furthest(plain, compiled) < 1e-4
    assert not all(torch.equal(plain[name], compiled[name]) for name in plain), "nothing was compiled"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_accelerator_trains_like_the_cpu(tmp_path: Path, precision: str) -> None:
    """One step's gradients near the CPU's, and a run that is killed in the middle goes on."""
    sought = first_gradients(uneven_run(tmp_path))
    found = first_gradients(uneven_run(tmp_path, device="cuda", precision=precision))
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    scale = max(float(tensor.abs().max()) for tensor in sought.values())
    assert furthest({n: t.cpu() for n, t in found.items()}, sought) < tolerance * scale
    uneven_run(tmp_path / "run", device="cuda", precision=precision).train(stop_after=3)
    resumed = uneven_run(tmp_path / "run", device="cuda", precision=precision)
    assert resumed.train().step == 6
    assert all(tensor.isfinite().all() for tensor in weights(resumed).values())
