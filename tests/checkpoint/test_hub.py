"""Names become folders; the hub is a stand-in on loopback, reached as a user's process reaches it: by environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smelt.checkpoint import open_checkpoint
from smelt.checkpoint.hub import hub_name, resolve_model, shipped_models
from smelt.core.errors import CheckpointError
from tests.checkpoint.stand_in_hub import COMMIT, StandInHub, serving

_SCRIPT = """
import sys
from smelt.checkpoint.hub import resolve_model
from smelt.core.errors import SmeltError
try:
    print(resolve_model(sys.argv[1], progress=sys.argv[2] == "progress"))
except SmeltError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[StandInHub]:
    good = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    strange = dict(good, **{"config.json": good["config.json"].replace(b"gemma3_text", b"mamba")})
    del strange["smelt.json"]
    repos = {
        "house/tiny": good | {"onnx/model.safetensors": b"?", "pytorch_model.bin": b"?", "README.md": b"?"},
        "old/pickled": {k: v for k, v in good.items() if k != "model.safetensors"} | {"pytorch_model.bin": b"?"},
        "odd/mamba": strange,
        "odd/empty": {"README.md": b"?"},
    }
    with serving(StandInHub(repos)) as hub:
        yield hub


def run(hub: StandInHub, name: str, home: Path, *, progress: bool = False, **env: str) -> tuple[str, str]:
    """Resolve in a fresh process, as its settings come from the environment. Returns stdout and stderr."""
    keep = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    settings = keep | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **env}
    command = [sys.executable, "-c", _SCRIPT, name, "progress" if progress else "quiet"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip(), done.stderr


def test_a_folder_is_itself(tiny_folder: Path) -> None:
    assert resolve_model(tiny_folder) == tiny_folder
    assert resolve_model(str(tiny_folder)) == tiny_folder


@pytest.mark.parametrize(
    "name", ["nowhere", "./nowhere/at/all", "/nowhere/else", "a/b/c", "../up", "name with space/x"]
)
def test_what_is_neither_folder_nor_id_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="sought a folder, a shipped model"):
        resolve_model(name)


def test_a_fetched_model_is_called_by_its_id(tiny_folder: Path) -> None:
    assert hub_name("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
    assert hub_name("owner/name@main") == "owner/name"
    assert [hub_name(name) for name in (tiny_folder, "src/smelt", *shipped_models())] == [None] * (
        2 + len(shipped_models())
    )


def test_shipped_models_resolve_by_name() -> None:
    for name in shipped_models():
        assert open_checkpoint(resolve_model(name)).config.vocab_size > 0


def test_downloads_what_is_needed_once(hub: StandInHub, tmp_path: Path, tiny_folder: Path) -> None:
    found, stderr = run(hub, "house/tiny", tmp_path, progress=True)
    assert "tiny" in found, stderr
    assert open_checkpoint(found).fingerprint == open_checkpoint(tiny_folder).fingerprint
    assert sorted(path.name for path in Path(found).iterdir()) == sorted(path.name for path in tiny_folder.iterdir())
    assert "model.safetensors" in hub.fetched() and "pytorch_model.bin" not in hub.fetched()
    assert str(tmp_path) in found, "HF_HOME says where the cache is"
    hub.requests.clear()
    assert run(hub, "house/tiny", tmp_path)[0] == found
    assert hub.fetched() == [], "the second time comes from the cache"


def test_a_chat_template_in_a_file_of_its_own_is_fetched(hub: StandInHub, tmp_path: Path) -> None:
    """transformers 5 saves the template beside tokenizer_config.json, in chat_template.jinja, and that was left behind.

    So a Qwen3 repository of that kind was taken for a model that does not think, and one with an unknown template for
    a base model, though the same folder on disk was not.
    """
    hub.repos["house/tiny"]["chat_template.jinja"] = b"{{ messages }}"
    found, stderr = run(hub, "house/tiny", tmp_path)
    assert (Path(found) / "chat_template.jinja").read_bytes() == b"{{ messages }}", stderr


def test_works_offline_once_cached(hub: StandInHub, tmp_path: Path) -> None:
    found, _ = run(hub, "house/tiny", tmp_path)
    again, stderr = run(hub, "house/tiny", tmp_path, HF_HUB_OFFLINE="1")
    assert again == found, stderr
    _, stderr = run(hub, "odd/mamba", tmp_path, HF_HUB_OFFLINE="1")
    assert "CheckpointError: odd/mamba: not in the cache" in stderr


def test_a_cut_connection_resumes_where_it_broke(hub: StandInHub, tmp_path: Path) -> None:
    """The library writes in pieces of ten megabytes, so only a larger file has something to resume."""
    weights = hub.repos["house/tiny"]["model.safetensors"] = os.urandom(21_000_000)
    hub.cut_once["model.safetensors"] = 15_000_000
    found, stderr = run(hub, "house/tiny", tmp_path)
    assert found, stderr
    asked = [range_ for method, path, range_ in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert asked == [None, "bytes=10485760-"]
    assert (Path(found) / "model.safetensors").read_bytes() == weights


def test_a_failed_download_says_so_and_goes_on_when_run_again(hub: StandInHub, tmp_path: Path) -> None:
    hub.failing.add("model.safetensors")
    found, stderr = run(hub, "house/tiny", tmp_path)
    assert not found and "CheckpointError: house/tiny: the download stopped" in stderr
    hub.failing.clear()
    hub.requests.clear()
    found, stderr = run(hub, "house/tiny", tmp_path)
    assert found, stderr
    assert hub.fetched() == ["model.safetensors"], "what was there already is not fetched again"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("old/pickled", "UnsupportedError: old/pickled: has pytorch_model.bin and no safetensors"),
        ("odd/mamba", "UnsupportedError: config.json: model_type = 'mamba' is not supported"),
        ("odd/empty", "CheckpointError: odd/empty: no config.json"),
        ("no/body", "CheckpointError: no/body: no such model"),
        ("house/tiny@v9", "CheckpointError: house/tiny: has no revision 'v9'"),
    ],
)
def test_refusals_name_the_reason_and_fetch_no_weights(hub: StandInHub, tmp_path: Path, name: str, error: str) -> None:
    found, stderr = run(hub, name, tmp_path)
    assert not found
    assert stderr.strip().splitlines()[-1].startswith(error)
    assert not {"model.safetensors", "pytorch_model.bin"} & set(hub.fetched())


def test_a_revision_can_be_named(hub: StandInHub, tmp_path: Path) -> None:
    found, stderr = run(hub, f"house/tiny@{COMMIT}", tmp_path)
    assert found.endswith(COMMIT), stderr


def test_bars_are_drawn_unless_unwanted(hub: StandInHub, tmp_path: Path) -> None:
    forced = {"TQDM_POSITION": "-1"}  # stderr is no terminal here
    _, drawn = run(hub, "house/tiny", tmp_path / "one", progress=True, **forced)
    _, quiet = run(hub, "house/tiny", tmp_path / "two", **forced)
    assert "Reconstruction complete" in drawn and "Reconstruct" not in quiet
