"""Folders: saved whole, opened with every claim checked, loaded by plain transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from smelt.checkpoint import folder as folder_module
from smelt.checkpoint import open_checkpoint, save_checkpoint
from smelt.checkpoint.migrations import FORMAT_VERSION, STEPS, Content, migrate
from smelt.checkpoint.safetensors import FloatDtype, SafetensorsFile, write_file
from smelt.core.errors import CheckpointError, UnsupportedError
from tests.tiny import make_tiny_folder, random_tensors, tiny_config

CONFIG = tiny_config("gemma3_text")
TENSORS = random_tensors(CONFIG)


def saved(path: Path, *, max_shard_bytes: int = folder_module.MAX_SHARD_BYTES, **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "MAX_SHARD_BYTES", max_shard_bytes)
        save_checkpoint(path, CONFIG, TENSORS, **options)
    return path


def edit_json(path: Path, change: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def assert_holds(folder: Path, tensors: Mapping[str, NDArray[np.float32]], tolerance: float = 0.0) -> None:
    opened = open_checkpoint(folder)
    assert set(opened.tensors) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_allclose(opened.tensors[name], array, rtol=tolerance, atol=tolerance * 2**-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 0.0), ("BF16", 2**-8), ("F16", 2**-9)])
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 20_000, 1])
def test_round_trip(dtype: FloatDtype, tolerance: float, max_shard_bytes: int, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", dtype=dtype, max_shard_bytes=max_shard_bytes)
    assert_holds(folder, TENSORS, tolerance)
    opened = open_checkpoint(folder)
    assert (opened.config, opened.stored_dtypes, opened.card) == (CONFIG, {dtype}, None)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == {1 << 30: 1, 1: len(TENSORS)}.get(max_shard_bytes, len(shards))
    biggest = max(array.size for array in TENSORS.values()) * (4 if dtype == "F32" else 2)
    assert all(SafetensorsFile(shard).data_bytes <= max(max_shard_bytes, biggest) for shard in shards)


def test_sharded_folders_load_in_transformers(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", max_shard_bytes=20_000)
    theirs = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(theirs[name].numpy(), array)


def test_a_tiny_folder_is_complete(tiny_folder: Path) -> None:
    opened = open_checkpoint(tiny_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert len(tokenizer) == opened.config.vocab_size
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (opened.config.bos_id, *opened.config.eos_ids)
    assert AutoModelForCausalLM.from_pretrained(tiny_folder).config.model_type == "gemma3_text"


def test_opening_imports_no_torch(tiny_folder: Path) -> None:
    script = (
        "import sys; from smelt.checkpoint import open_checkpoint; import smelt.checkpoint.hub\n"
        f"sum(array.sum() for array in open_checkpoint({str(tiny_folder)!r}).tensors.values())\n"
        "sys.exit(', '.join({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_card_and_further_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", files={"card.json": b'{"name": "spark"}', "note.txt": b"hello"})
    assert open_checkpoint(folder).card == {"name": "spark"}
    assert (folder / "note.txt").read_bytes() == b"hello"
    with pytest.raises(CheckpointError, match="no plain file name"):
        saved(tmp_path / "other", files={"../escape": b""})
    assert not (tmp_path / "other").exists() and not (tmp_path / "escape").exists()


def test_fingerprint_changes_with_what_matters(tmp_path: Path) -> None:
    first = open_checkpoint(saved(tmp_path / "a")).fingerprint
    assert open_checkpoint(saved(tmp_path / "b", files={"card.json": b"{}"})).fingerprint == first
    trained = {name: array * 1.0001 for name, array in TENSORS.items()}
    save_checkpoint(tmp_path / "c", CONFIG, trained)
    others = {
        open_checkpoint(tmp_path / "c").fingerprint,
        open_checkpoint(saved(tmp_path / "d", dtype="BF16")).fingerprint,
    }
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": 3}')
    others.add(open_checkpoint(tmp_path / "a").fingerprint)
    assert len(others | {first}) == 4


# ------------------------------------------------------------------------------------------------ saving


def test_a_present_folder_is_kept_unless_replaced(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", files={"note.txt": b"first"})
    with pytest.raises(CheckpointError, match="already there"):
        saved(folder)
    assert (folder / "note.txt").exists()
    saved(folder, dtype="BF16", replace=True)
    assert open_checkpoint(folder).stored_dtypes == {"BF16"} and not (folder / "note.txt").exists()
    (tmp_path / "empty").mkdir()
    saved(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "model"], "nothing is left beside"


@pytest.mark.parametrize("fails_at", ["write_weights", "to_hf", "_exchange"])
def test_a_save_that_fails_leaves_what_was(fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model")

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, fails_at, fail)
    with pytest.raises(KeyboardInterrupt):
        saved(folder, dtype="BF16", replace=True)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_holds(folder, TENSORS)


def test_an_exchange_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model")
    rename, calls = Path.replace, []

    def fail_once(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk trouble")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises(OSError, match="disk trouble"):
        saved(folder, dtype="BF16", replace=True)
    assert_holds(folder, TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tensors_that_do_not_fit_are_not_saved(tmp_path: Path) -> None:
    few = {name: array for name, array in TENSORS.items() if "norm" not in name}
    for tensors, about in (
        (few, "missing"),
        ({**TENSORS, "extra": np.zeros(1)}, "extra not called for"),
        ({**TENSORS, "model.norm.weight": np.zeros(3)}, r"model.norm.weight has shape \[3\]"),
    ):
        with pytest.raises(CheckpointError, match=about):
            save_checkpoint(tmp_path / "model", CONFIG, tensors)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ opening


def rewrite(folder: Path, change: Mapping[str, NDArray[Any] | None]) -> None:
    tensors = {name: array for name, array in {**TENSORS, **change}.items() if array is not None}
    write_file(folder / "model.safetensors", tensors, "F32")


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"model.norm.weight": None}, "model.norm.weight missing; config.json calls for 41 tensors"),
        ({name: None for name in TENSORS if "mlp" in name}, "and 6 more missing"),
        ({"model.layers.9.mlp.up_proj.weight": np.zeros(3)}, "model.layers.9.mlp.up_proj.weight not called for"),
        ({"model.norm.weight": np.zeros((1, 48))}, r"model.norm.weight has shape \[1, 48\].*calls for \[48\]"),
        ({"lm_head.weight": np.ones((96, 48))}, "lm_head.weight not called for"),
    ],
)
def test_weights_must_be_what_the_config_says(change: Any, about: str, tmp_path: Path) -> None:
    rewrite(saved(tmp_path / "model"), change)
    with pytest.raises(CheckpointError, match=about):
        open_checkpoint(tmp_path / "model")


def test_a_tied_head_written_twice_and_old_rotary_buffers_are_passed_over(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    again = {"lm_head.weight": TENSORS["model.embed_tokens.weight"]}
    rewrite(folder, {**again, "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8)})
    assert_holds(folder, TENSORS)


def test_pickled_weights_are_refused_unopened(tmp_path: Path) -> None:
    """Row 24 of the safety table: the file would create a canary if it were unpickled."""
    folder, canary = saved(tmp_path / "model"), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="sought model.safetensors or model.safetensors.index.json, found neither"
    ):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nmknod\n(S'" + os.fsencode(canary) + b"'\ntR.")
    with pytest.raises(UnsupportedError, match="pytorch_model.bin: pickled weights can run code"):
        open_checkpoint(folder)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("index", "about"),
    [
        ({"weight_map": None}, "sought weight_map"),
        ({"weight_map": {}}, "sought weight_map"),
        ({"weight_map": {"model.norm.weight": "../model.safetensors"}}, "no plain .safetensors file name"),
        ({"weight_map": {"model.norm.weight": "/etc/passwd"}}, "no plain .safetensors file name"),
        ({"weight_map": {"model.norm.weight": 3}}, "no plain .safetensors file name"),
        ({"weight_map": {"model.norm.weight": "model-9.safetensors"}}, "which is not in the folder"),
        ({"weight_map": {"model.norm.weight": "model-00001-of-00005.safetensors"}}, "which does not hold it"),
    ],
)
def test_an_index_that_lies_is_refused(index: dict[str, Any], about: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", max_shard_bytes=60_000)
    edit_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(CheckpointError, match=about):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", max_shard_bytes=60_000)
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="is in both"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "content", "about"),
    [
        ("config.json", b"[]", "sought a JSON object, found list"),
        ("config.json", b"{" * 100_000, "not a valid JSON object"),
        ("config.json", b'{"a": 1, "a": 2}', "occurs twice"),
        ("config.json", b'{"a": Infinity}', "Infinity"),
        ("config.json", b" " * (17 << 20), "no model folder needs that"),
        ("config.json", b"\xff\xfe", "not a valid JSON object"),
        ("generation_config.json", b"nonsense", "generation_config.json: not a valid JSON object"),
        ("card.json", b"3", "card.json: sought a JSON object"),
        ("smelt.json", b'{"format_version": "1"}', "format_version must be a whole number"),
        ("smelt.json", b"{}", "format_version must be a whole number >= 1, found None"),
        ("smelt.json", b'{"format_version": 99}', "format_version 99 is newer than this smelt"),
    ],
)
def test_malformed_documents_are_refused(name: str, content: bytes, about: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=about):
        open_checkpoint(folder)


def test_what_is_no_model_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is named, even where it was given as "." and has no name of its own."""
    with pytest.raises(CheckpointError, match="nowhere: no such model folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no config.json"):
        open_checkpoint(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: no config.json"):
        open_checkpoint(".")


def test_an_unsupported_config_is_named_before_the_weights_are(tmp_path: Path) -> None:
    folder = make_tiny_folder(tmp_path / "model")
    (folder / "smelt.json").unlink()
    edit_json(folder / "config.json", {"auto_map": {"AutoModel": "evil.Evil"}})
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UnsupportedError, match="auto_map"):
        open_checkpoint(folder)


# ------------------------------------------------------------------------------------------------ migrations


def rename_width(content: Content) -> Content:
    config = dict(content.config)
    config["hidden_size"] = config.pop("width")
    return Content(config=config, tensors=content.tensors)


def split_joined(content: Content) -> Content:
    tensors = dict(content.tensors)
    tensors["gate"], tensors["up"] = np.split(tensors.pop("gate_up"), 2)
    return Content(config=content.config, tensors=tensors)


def test_old_versions_go_through_every_later_step_in_order() -> None:
    old = Content(config={"width": 4}, tensors={"gate_up": np.arange(4, dtype=np.float32)})
    steps = [rename_width, split_joined]
    newest = migrate(old, 1, steps)
    assert newest.config == {"hidden_size": 4} and newest.tensors["up"].tolist() == [2, 3]
    assert set(migrate(old, 2, steps).config) == {"width"}, "version 2 needs the second step only"
    assert migrate(old, 3, steps) is old


def test_a_folder_of_an_old_version_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mechanism end to end, with one imagined step: version 1 had called the width `width`."""
    folder = saved(tmp_path / "model")
    document = json.loads((folder / "config.json").read_text())
    document["width"] = document.pop("hidden_size")
    (folder / "config.json").write_text(json.dumps(document))
    monkeypatch.setattr(folder_module, "migrate", lambda content, version: migrate(content, version, [rename_width]))
    assert_holds(folder, TENSORS)


def test_the_version_written_is_the_newest_that_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    assert json.loads((folder / "smelt.json").read_text()) == {"format_version": FORMAT_VERSION}
    assert len(STEPS) + 1 == FORMAT_VERSION
