"""Row 24 of reference/safety.md 5.2: folders that must not be served. Through `serve.run`, as `smelt serve` starts.

Each folder that could run code carries a bait: code that would create the canary file.
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smelt.core.errors import CheckpointError
from smelt.server.serve import load_model, run
from smelt.server.settings import Settings
from tests.server.live import CLI, ROOT

Spoil = Callable[[Path, Path], None]


class _Bait:
    """Unpickling it creates the canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (open, (str(self.canary), "w"))


def _pickled(name: str) -> Spoil:
    def spoil(folder: Path, canary: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(_Bait(canary)))

    return spoil


def _header(change: Callable[[dict[str, Any], int], None]) -> Spoil:
    """Rewrite the safetensors header: `change` gets it and the number of data bytes."""

    def spoil(folder: Path, canary: Path) -> None:
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header, len(raw) - 8 - length)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return spoil


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def _set(**fields: Any) -> Spoil:
    return _header(lambda header, num_bytes: _first(header).update(fields))


def _overlap(header: dict[str, Any], num_bytes: int) -> None:
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    first, second, *_ = [entry for entry in entries if entry["shape"] == entries[-1]["shape"]]
    first["data_offsets"] = second["data_offsets"]


def _raw_header(length: int, text: bytes = b"{}") -> Spoil:
    def spoil(folder: Path, canary: Path) -> None:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + text)

    return spoil


def _duplicate(folder: Path, canary: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    text = raw[8 : 8 + length].rstrip()
    name = next(name for name in json.loads(text) if name != "__metadata__")
    entry = json.dumps(json.loads(text)[name])
    text = text[:-1] + f',"{name}":{entry}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def _edit(name: str, **fields: Any) -> Spoil:
    def spoil(folder: Path, canary: Path) -> None:
        path = folder / name
        value = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(value | fields))

    return spoil


def _remote_code(folder: Path, canary: Path) -> None:
    (folder / "modeling.py").write_text(f"open({str(canary)!r}, 'w')")
    _edit("config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"}, model_type="custom")(folder, canary)


def _evil_regex(folder: Path, canary: Path) -> None:
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split]}
    path.write_text(json.dumps(spec))


def _unknown_template(folder: Path, canary: Path) -> None:
    """A tokenizer whose control tokens belong to no known format, and a template that would run code in Jinja."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|", "<!"))
    attack = "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"
    _edit("tokenizer_config.json", chat_template=attack)(folder, canary)


SPOILED: dict[str, Spoil] = {
    "pytorch_model.bin": _pickled("pytorch_model.bin"),
    "model.pt": _pickled("model.pt"),
    "model.pkl": _pickled("model.pkl"),
    "a pickle called safetensors": _pickled("model.safetensors"),
    "header of 2^63 bytes": _raw_header(2**63),
    "header of 2^64-1 bytes": _raw_header(2**64 - 1),
    "header of 100 MB": _raw_header(100_000_000, b"{" + b" " * 99_999_998 + b"}"),
    "header longer than the file": _raw_header(1000),
    "header that is no JSON": _raw_header(4, b"\x00\x01\x02\x03"),
    "empty file": lambda folder, canary: (folder / "model.safetensors").write_bytes(b"") and None,
    "offsets beyond the file": _set(data_offsets=[0, 2**40]),
    "negative offsets": _set(data_offsets=[-8, 8]),
    "offsets backwards": _set(data_offsets=[8, 0]),
    "overlapping offsets": _header(_overlap),
    "shape whose product overflows": _set(shape=[2**33, 2**33]),
    "negative shape": _set(shape=[-1, -48]),
    "dtype that does not fit": _set(dtype="F64"),
    "unknown dtype": _set(dtype="PICKLE"),
    "duplicate names": _duplicate,
    "auto_map": _remote_code,
    "unsupported model": _edit("config.json", model_type="mamba"),
    "layers without end": _edit("config.json", num_hidden_layers=10**9),
    "catastrophic regex": _evil_regex,
    "unknown chat template": _unknown_template,
    "config is no JSON": lambda folder, canary: (folder / "config.json").write_text("{") and None,
    "no config": lambda folder, canary: (folder / "config.json").unlink(),
    "no tokenizer": lambda folder, canary: (folder / "tokenizer.json").unlink(),
}


def _start(folder: Path) -> None:
    run(Settings(model=str(folder), port=0), load=load_model, on_ready=lambda ready: pytest.fail("it serves"))


@pytest.mark.parametrize("name", SPOILED)
def test_refused_with_a_reason(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(tiny_folder, folder)
    SPOILED[name](folder, canary)
    with pytest.raises(CheckpointError) as caught:
        _start(folder)
    assert len(str(caught.value)) > 20
    assert not canary.exists()


def test_weights_beside_a_pickle_are_fine(tiny_folder: Path, tmp_path: Path) -> None:
    """The pickle is not looked at; this is how many folders on the hub are."""
    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(tiny_folder, folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bait(canary)))
    load_model(Settings(model=str(folder))).close()
    assert not canary.exists()


@pytest.mark.parametrize("model", ["/no/such/folder", "../../etc", "https://evil.example/model", "a/b/c", "\x00"])
def test_models_that_are_no_folder(model: str) -> None:
    with pytest.raises(CheckpointError):
        _start(Path(model))


def test_the_process_says_why_and_ends_with_a_status(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = [*CLI, "serve", "--model", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr + done.stdout) > 20
