"""The safetensors reader and writer: equal to the reference library on good files, unmoved by bad ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from smelt.checkpoint.safetensors import MAX_HEADER_BYTES, FloatDtype, SafetensorsFile, encode, write_file
from smelt.core.errors import CheckpointError, UnsupportedError

TORCH_DTYPES: dict[FloatDtype, torch.dtype] = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def arrays(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {"b": (3, 5), "a.weight": (7,), "empty": (0, 4), "scalar": (), "deep": (2, 1, 3, 2)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def raw_file(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_what_we_write_the_library_reads(dtype: FloatDtype, tmp_path: Path) -> None:
    write_file(tmp_path / "x.safetensors", arrays(), dtype, {"made": "here"})
    theirs = load_file(tmp_path / "x.safetensors")
    ours = SafetensorsFile(tmp_path / "x.safetensors")
    assert ours.metadata == {"format": "pt", "made": "here"}
    assert set(theirs) == set(ours) == set(arrays())
    for name, array in arrays().items():
        sought = torch.from_numpy(array).to(TORCH_DTYPES[dtype])
        assert torch.equal(theirs[name], sought), "rounding is torch's: to nearest, ties to even"
        assert ours[name].dtype == np.float32 and ours[name].shape == array.shape
        np.testing.assert_array_equal(ours[name], sought.float().numpy())


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_what_the_library_writes_we_read(dtype: FloatDtype, tmp_path: Path) -> None:
    tensors = {name: torch.from_numpy(array).to(TORCH_DTYPES[dtype]) for name, array in arrays().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    ours = SafetensorsFile(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(ours[name], tensor.float().numpy())


def test_float32_is_mapped_and_not_copied(tmp_path: Path) -> None:
    write_file(tmp_path / "x.safetensors", arrays(), "F32")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert np.shares_memory(file["b"], file.stored("b"))
    assert not file["b"].flags.writeable


def test_unaligned_data_is_read_all_the_same(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0], "<f4")
    header = json.dumps({"x": entry()}).encode()
    header += b" " * (1 - len(header) % 4)
    (tmp_path / "x.safetensors").write_bytes(raw_file(header, values.tobytes()))
    found = SafetensorsFile(tmp_path / "x.safetensors")["x"]
    assert found.flags.aligned and found.tolist() == [1.5, -2.0]


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_bfloat16_rounds_as_torch_does(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    sought = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
    overflows = np.isinf(sought) & np.isfinite(values)
    if overflows.any():
        with pytest.raises(CheckpointError, match="too large"):
            encode(values, "BF16")
        values, sought = values[~overflows], sought[~overflows]
    found = (encode(values, "BF16").astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found, sought)


def test_half_precision_refuses_what_would_overflow() -> None:
    with pytest.raises(CheckpointError, match="norm: a value is too large for F16"):
        encode(np.array([70000.0]), "F16", "norm")
    assert np.isinf(encode(np.array([np.inf]), "F16")).all(), "what was infinite stays so"


@pytest.mark.parametrize(
    ("content", "about"),
    [
        (b"", "too short"),
        (b"\x80\x02}q\x00.", "too short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "Git LFS pointer"),
        (raw_file({}, length=2**63), "claims a header of 9223372036854775808"),
        (raw_file({}, length=2**64 - 1), "claims a header"),
        (raw_file({}, length=100 << 20), f"at most {MAX_HEADER_BYTES}"),
        (raw_file({}, length=1000), "in a file of"),
        (b"PK\x03\x04" * 10, "claims a header"),
        (raw_file(b"[1, 2]"), "does not begin with"),
        (raw_file(b'{"x": }'), "not a valid JSON"),
        (raw_file(b'{"x"' + b"\xff" * 4 + b"}"), "not a valid JSON"),
        (raw_file(b'{"a":' * 100_000), "not a valid JSON"),
        (raw_file(b'{"a":[' + b"9" * 10_000 + b"]}"), "not a valid JSON"),
        (raw_file(b'{"x": NaN}'), "NaN"),
        (raw_file(b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"x":{}}'), "occurs twice"),
        (raw_file({"__metadata__": {"a": 1}}), "__metadata__"),
        (raw_file({"x": 1}), "sought exactly"),
        (raw_file({"x": {**entry(), "more": 1}}, b"\0" * 8), "sought exactly"),
        (raw_file({"x": entry("F33")}, b"\0" * 8), "dtype 'F33' is unknown"),
        (raw_file({"x": entry(["F32"])}, b"\0" * 8), "is unknown"),  # type: ignore[arg-type]
        (raw_file({"x": entry(shape=[2.0])}, b"\0" * 8), "shape must be"),
        (raw_file({"x": entry(shape=[True, 2])}, b"\0" * 8), "shape must be"),
        (raw_file({"x": entry(shape=[-1, -2])}, b"\0" * 8), "shape must be"),
        (raw_file({"x": entry(shape=[1] * 9)}, b"\0" * 8), "shape must be"),
        (raw_file({"x": entry(shape=[2**32, 2**32, 4])}, b"\0" * 8), "needs"),
        (raw_file({"x": entry(shape=[2**62, 4])}, b"\0" * 8), "needs"),
        (raw_file({"x": entry("BF16")}, b"\0" * 8), "BF16 \\[2\\] needs 4 bytes"),
        (raw_file({"x": entry(offsets=[0, 8, 16])}, b"\0" * 8), "data_offsets must be"),
        (raw_file({"x": entry(offsets=[-8, 0])}, b"\0" * 8), "data_offsets must be"),
        (raw_file({"x": entry(offsets=[8, 0])}, b"\0" * 8), "needs 8 bytes"),
        (raw_file({"x": entry()}, b"\0" * 7), "cut short"),
        (raw_file({"x": entry(offsets=[2**62, 2**62 + 8])}, b"\0" * 8), "cut short"),
        (raw_file({"x": entry(), "y": entry(offsets=[4, 12])}, b"\0" * 12), "overlaps 'x'"),
        (raw_file({"x": entry(), "y": entry()}, b"\0" * 8), "overlaps"),
        (raw_file({"x": entry(), "y": entry(offsets=[12, 20])}, b"\0" * 20), "gap after 'x'"),
        (raw_file({"x": entry(offsets=[4, 12])}, b"\0" * 12), "gap after the header"),
        (raw_file({"x": entry()}, b"\0" * 9), "1 bytes after the last tensor"),
    ],
)
def test_a_file_that_lies_is_refused_with_the_reason(content: bytes, about: str, tmp_path: Path) -> None:
    """Row 24 of the safety table."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=about):
        SafetensorsFile(path)


def test_a_header_at_the_limit_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw_file(b"{" + b" " * MAX_HEADER_BYTES + b"}"))
    with pytest.raises(CheckpointError, match="claims a header"):
        SafetensorsFile(tmp_path / "x.safetensors")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4), cut=st.integers(0, 80)
)
def test_random_damage_is_refused_or_harmless(edits: list[tuple[int, int]], cut: int, tmp_path: Path) -> None:
    """Whatever bytes change, the file is refused, or every tensor in it can be read."""
    path, sound = tmp_path / "x.safetensors", tmp_path / "sound.safetensors"
    if not sound.exists():
        write_file(sound, arrays(), "F32")
    data = bytearray(sound.read_bytes())
    for at, value in edits:
        data[at % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    for name in file:
        try:
            assert file[name].shape == file.entries[name].shape
        except UnsupportedError:
            assert file.entries[name].dtype not in ("F32", "F16", "BF16")


def test_integers_and_eight_bit_floats_are_not_taken_for_weights(tmp_path: Path) -> None:
    save_file({"x": torch.arange(4), "y": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedError, match="tensor 'x' has dtype I64"):
        file["x"]
    with pytest.raises(UnsupportedError, match="F8_E4M3"):
        file["y"]


def test_names_that_readers_could_stumble_over_are_not_written(tmp_path: Path) -> None:
    for name in ("", "a\nb", "__metadata__", "x" * 600):
        with pytest.raises(CheckpointError, match="cannot name a tensor"):
            write_file(tmp_path / "x.safetensors", {name: np.zeros(1, np.float32)}, "F32")
