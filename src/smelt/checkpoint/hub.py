"""From the name of a model to a folder on disk: a path, a shipped model, or a Hugging Face id.

Downloads go through `huggingface_hub`, which keeps the cache, resumes a cut connection (run again, it goes on with the
files still missing), shows progress and respects HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. Only safetensors,
JSON and the chat template are fetched, the weights last: a model that smelt cannot run is refused before they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from smelt.checkpoint import strict_json
from smelt.checkpoint.compressed_tensors import read_config
from smelt.checkpoint.weights import INDEX, PICKLES, SINGLE
from smelt.core.errors import CheckpointError, UnsupportedError

DEFAULT_MODEL = "spark"
SHIPPED = Path(__file__).resolve().parents[1] / "shipped"

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w.-]{1,100}))?")
_DOCUMENTS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "smelt.json",
    "card.json",
    "lineage.json",
    INDEX,
]
_WEIGHTS = [SINGLE, "model-*-of-*.safetensors"]
_SUBFOLDERS = ["*/*"]  # patterns of huggingface_hub match across slashes


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def resolve_model(name_or_path: str | Path = DEFAULT_MODEL, *, progress: bool = True) -> Path:
    """The folder of a model: an existing folder, else a shipped name, else an id `owner/name` or `owner/name@revision`.

    `progress` draws bars on stderr. Raises CheckpointError when there is no such model or it cannot be fetched, and
    UnsupportedError when smelt cannot run it.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if name in shipped_models():
        return SHIPPED / name
    found = _HUB_ID.fullmatch(name)
    if found is None or folder.exists():
        raise CheckpointError(
            f"no model {name!r}: sought a folder, a shipped model ({', '.join(shipped_models()) or 'none here'}) "
            "or a Hugging Face id like owner/name"
        )
    return _download(found[1], found[2], progress=progress)


def hub_name(name_or_path: str | Path) -> str | None:
    """`owner/name` where `resolve_model` fetches a Hugging Face id; its folder in the cache has a commit's name.

    None for a folder and for a shipped model, which have names of their own.
    """
    name = str(name_or_path)
    found = _HUB_ID.fullmatch(name)
    if found is None or name in shipped_models() or Path(name).expanduser().exists():
        return None
    return found[1]


def _download(repo_id: str, revision: str | None, *, progress: bool) -> Path:
    folder = _fetch(repo_id, revision, _DOCUMENTS, progress=False)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{repo_id}: no config.json, so not a model in Hugging Face form")
    if not (folder / "smelt.json").is_file():  # our own folders may be of an older format, which opening migrates
        generation = folder / "generation_config.json"
        read_config(
            strict_json.read_object(folder / "config.json"),
            strict_json.read_object(generation) if generation.is_file() else None,
        )
    folder = _fetch(repo_id, folder.name, _WEIGHTS, progress=progress)  # a snapshot's folder is named by its commit
    if not any(folder.glob("*.safetensors")):
        raise _no_weights(repo_id, folder.name)
    return folder


def _fetch(repo_id: str, revision: str | None, patterns: list[str], *, progress: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    quiet: dict[str, Any] = {} if progress else {"tqdm_class": _quiet_bar()}
    try:
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=_SUBFOLDERS, **quiet
        )
    except errors.GatedRepoError:
        raise CheckpointError(f"{repo_id}: access is restricted; accept its terms, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{repo_id}: no such model, or a private one that needs HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{repo_id}: has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(f"{repo_id}: not in the cache, and the hub cannot be reached: {_first(error)}") from None
    except Exception as error:  # the library lets its HTTP client's errors through, whichever client that is
        message = f"{repo_id}: the download stopped ({_first(error)}); the same command goes on where it stopped"
        raise CheckpointError(message) from error
    return Path(folder)


def _first(error: Exception) -> str:
    """The first line of a library's message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _quiet_bar() -> Any:
    from huggingface_hub.utils.tqdm import tqdm

    def never_drawn(self: Any, *args: Any, **kwargs: Any) -> None:
        tqdm.__init__(self, *args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    return type("QuietBar", (tqdm,), {"__init__": never_drawn})


def _no_weights(repo_id: str, commit: str) -> CheckpointError:
    """The reason, by what the repository holds instead."""
    from huggingface_hub import HfApi

    names = sorted(HfApi().list_repo_files(repo_id, revision=commit))
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if pickles:
        return UnsupportedError(
            f"{repo_id}: has {pickles[0]} and no safetensors; pickled weights can run code when loaded "
            "and are never read"
        )
    return CheckpointError(f"{repo_id}: no weights: sought {SINGLE} or {INDEX}, found neither")
