"""`smelt export` from the command line: what is written, what is told, and what a failed comparison leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from smelt.chat.house_template import house_tokenizer_config
from smelt.checkpoint import open_checkpoint
from smelt.checkpoint.folder import Checkpoint
from smelt.cli.app import app
from smelt.core.decoder import LayerConfig
from smelt.core.errors import CheckpointError, InvalidRequestError, SmeltError, UnsupportedError
from tests.tiny import make_tiny_folder

pytest.importorskip("transformers", reason="the independent reader of folders is not installed (transformers)")
pytest.importorskip("gguf", reason="the extra train is not installed")

RUN = CliRunner()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma with shared layers, in bfloat16, in the house format."""
    layers = tuple(LayerConfig(window=8, rope=1, weights=None if i == 0 else 0) for i in range(2)) + (LayerConfig(),)
    folder = make_tiny_folder(
        tmp_path_factory.mktemp("export") / "small", dtype="BF16", hidden_size=64, embedding_scale=8.0, layers=layers
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(house_tokenizer_config()))
    return folder


def exported(source: Path, to: str, out: Path, *more: str) -> dict[str, Any]:
    made = RUN.invoke(app, ["export", str(source), "--to", to, "--out", str(out), "--json", *more])
    assert made.exit_code == 0, made.output
    told: dict[str, Any] = json.loads(made.stdout)
    assert told["passed"]
    return told


def error_of(*arguments: str) -> SmeltError:
    made = RUN.invoke(app, ["export", *arguments])
    assert isinstance(made.exception, SmeltError)
    return made.exception


def opened(told: dict[str, Any]) -> Checkpoint:
    return open_checkpoint(told["path"])


def test_plain_then_few_bits_then_plain_again(source: Path, tmp_path: Path) -> None:
    """Each is loaded by transformers; the last stands for exactly what the codes did."""
    pytest.importorskip("compressed_tensors", reason="the reader of quantized folders is not installed")
    plain = exported(source, "hf", tmp_path / "plain")
    assert (plain["type"], opened(plain).stored_dtypes) == ("bf16", {"BF16"})
    assert opened(plain).config.plain
    assert "layers share matrices" in plain["notes"][0]
    names = [check["name"] for check in plain["checks"]]
    assert names == ["logits, what is stored", "logits, the source", "ids of texts", "chat"]
    few = exported(tmp_path / "plain", "compressed-tensors", tmp_path / "few", "--type", "w4")
    assert opened(few).scheme is not None
    again = exported(tmp_path / "few", "hf", tmp_path / "again")
    assert (again["type"], opened(again).scheme) == ("f32", None)
    name = "model.layers.1.mlp.down_proj.weight"
    assert (opened(again).tensors[name] == opened(few).tensors[name]).all()
    kept = exported(tmp_path / "few", "compressed-tensors", tmp_path / "kept")
    assert (opened(kept).quantized[name].codes == opened(few).quantized[name].codes).all()
    error = error_of(str(tmp_path / "few"), "--to", "compressed-tensors", "--type", "w8", "--out", str(tmp_path / "no"))
    assert isinstance(error, InvalidRequestError)
    assert "rounded a second time" in str(error)


def test_gguf_is_read_back_by_llama_cpp(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the independent reader is not installed (llama-cpp-python)")
    made = RUN.invoke(app, ["export", str(source), "--to", "gguf", "--type", "q8_0", "--out", str(tmp_path / "m.gguf")])
    assert made.exit_code == 0, made.output
    first, *lines = made.stdout.splitlines()
    assert "q8_0" in first and "MB" in first
    assert any("one layer in 3 sees everything" in line for line in lines)
    assert sum(line.strip().startswith("ok") for line in lines) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_without_a_reader_it_says_so(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.compress.export.llama_reader.installed", lambda: False)
    told = exported(source, "gguf", tmp_path / "m.gguf")
    assert (told["checks"], told["unchecked"]) == ([], "the module llama_cpp is not installed")
    told = exported(source, "hf", tmp_path / "folder", "--no-check")
    assert (told["checks"], told["unchecked"]) == ([], "not asked for (--no-check)")
    made = RUN.invoke(app, ["export", str(source), "--to", "gguf", "--no-check", "--out", str(tmp_path / "n.gguf")])
    assert "NOT CHECKED: not asked for (--no-check)" in made.stdout


def test_a_failed_comparison_keeps_no_name(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.compress.export.folder._SAME", -1.0)
    out = tmp_path / "folder"
    made = RUN.invoke(app, ["export", str(source), "--to", "hf", "--type", "f32", "--out", str(out)])
    assert made.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.failed"]
    assert "logits, what is stored: not as sought; what was written is folder.failed" in made.stderr
    assert "FAILED   logits, what is stored" in made.stdout


def test_a_folder_that_does_not_load_is_a_failed_check(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", broken)
    made = RUN.invoke(app, ["export", str(source), "--to", "hf", "--out", str(tmp_path / "folder")])
    assert made.exit_code == 1
    assert "FAILED   loads: RuntimeError: size mismatch" in made.stdout


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "sought one of hf, compressed-tensors, gguf" in str(error_of(str(source), "--to", "onnx", "--out", out))
    wrong = error_of(str(source), "--to", "hf", "--type", "q4_0", "--out", out)
    assert "sought one of f32, bf16, f16" in str(wrong)
    assert "sought --type, one of w8" in str(error_of(str(source), "--to", "compressed-tensors", "--out", out))
    there = error_of(str(source), "--to", "hf", "--out", str(tmp_path))
    assert isinstance(there, CheckpointError) and "already there" in str(there)
    known = make_tiny_folder(tmp_path / "known", num_privileges=6)
    refused = error_of(str(known), "--to", "hf", "--out", out)
    assert isinstance(refused, UnsupportedError) and "num_privileges" in str(refused)
    gelu = make_tiny_folder(tmp_path / "gelu", family="llama", activation="gelu_tanh")
    assert "activation = silu" in str(error_of(str(gelu), "--to", "gguf", "--out", out))
    (gelu / "tokenizer.json").unlink()
    assert "sought a tokenizer.json" in str(error_of(str(gelu), "--to", "gguf", "--out", out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gelu", "known"]
