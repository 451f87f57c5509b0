"""One model to one form: written beside its place, read back by an independent reader, compared, then named."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from smelt.chat import Renderer, renderer_of_folder
from smelt.checkpoint import open_checkpoint, resolve_model
from smelt.checkpoint.folder import Checkpoint
from smelt.checkpoint.gguf import FORMATS, Format
from smelt.compress.export import folder as folders
from smelt.compress.export import gguf_file, llama_reader
from smelt.compress.export.compare import Check
from smelt.compress.export.plain import Plain, plain_of
from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.tokenizer import Tokenizer
from smelt.train.finetune.folder import base_name, kept_files, stored_dtype

Target = Literal["hf", "compressed-tensors", "gguf"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """model: a folder, a shipped model's name or a hub's id. type: empty for the target's own choice.

    check: compare with an independent reader, where it is installed.
    """

    model: str
    to: str
    out: Path
    type: str = ""
    check: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What came of it. path: where it lies, PATH.failed where a comparison failed.

    unchecked: why nothing was compared; empty where it was.
    """

    path: Path
    type: str
    num_bytes: int
    matrices: dict[str, int]
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    unchecked: str

    @property
    def passed(self) -> bool:
        """Whether no comparison failed."""
        return all(check.passed for check in self.checks)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "path": str(self.path), "passed": self.passed}


def export(settings: ExportSettings) -> Export:
    """Write, compare, name. Raises InvalidRequestError, CheckpointError; UnsupportedError for what cannot be said."""
    if settings.to not in TARGETS:
        raise InvalidRequestError(f"--to {settings.to}: sought one of {', '.join(TARGETS)}")
    if settings.out.exists():
        raise CheckpointError(f"{settings.out.name}: already there; choose another name, or remove it")
    source = resolve_model(settings.model)
    checkpoint = open_checkpoint(source)
    plain = plain_of(checkpoint)
    kind = _type(settings, checkpoint)
    tokenizer = Tokenizer.load(source) if (source / "tokenizer.json").is_file() else None
    renderer = renderer_of_folder(tokenizer) if tokenizer is not None else None
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(settings.out, "unchecked")
    _remove(staging)
    try:
        make = _gguf if settings.to == "gguf" else _folder
        made = make(settings, checkpoint, plain, kind, staging, tokenizer, renderer)
    except BaseException:
        _remove(staging)
        raise
    place = settings.out if made.passed else _beside(settings.out, "failed")
    _remove(place)
    staging.replace(place)
    return dataclasses.replace(made, path=place)


def _type(settings: ExportSettings, checkpoint: Checkpoint) -> str:
    """The type asked for, or the target's choice. Raises InvalidRequestError for one that the target has not."""
    known: tuple[str, ...] = {"hf": tuple(folders.DTYPES), "gguf": FORMATS}.get(settings.to, folders.SCHEMES)
    if settings.type and settings.type not in known:
        raise InvalidRequestError(f"--to {settings.to} --type {settings.type}: sought one of {', '.join(known)}")
    if settings.type or settings.to == "compressed-tensors":
        return settings.type
    if settings.to == "hf":
        return "f32" if checkpoint.quantized else stored_dtype(checkpoint).lower()
    if checkpoint.scheme is None:
        return "f16"
    return "q4_0" if checkpoint.scheme.weights.bits <= 4 else "q8_0"


def _folder(
    settings: ExportSettings,
    checkpoint: Checkpoint,
    plain: Plain,
    kind: str,
    staging: Path,
    tokenizer: Tokenizer | None,
    renderer: Renderer | None,
) -> Export:
    files = kept_files(checkpoint.folder)
    if settings.to == "hf":
        notes = folders.write_plain(staging, plain, folders.DTYPES[kind], files)
    else:
        notes = folders.write_compressed(staging, plain, kind, checkpoint.scheme, stored_dtype(checkpoint), files)
    missing = folders.missing_reader(quantized=settings.to == "compressed-tensors")
    unchecked = _unchecked(settings, missing)
    return Export(
        path=staging,
        type=kind or "kept",
        num_bytes=sum(path.stat().st_size for path in staging.iterdir()),
        matrices={},
        notes=(*plain.notes, *notes),
        checks=() if unchecked else tuple(folders.check(staging, plain, tokenizer, renderer)),
        unchecked=unchecked,
    )


def _gguf(
    settings: ExportSettings,
    checkpoint: Checkpoint,
    plain: Plain,
    kind: str,
    staging: Path,
    tokenizer: Tokenizer | None,
    renderer: Renderer | None,
) -> Export:
    if tokenizer is None:
        raise CheckpointError(
            "--to gguf: sought a tokenizer.json in the model folder; the file must hold its vocabulary"
        )
    format = cast(Format, kind)
    made, written = gguf_file.write(staging, plain, tokenizer, renderer, format, base_name(checkpoint))
    unchecked = _unchecked(settings, "" if llama_reader.installed() else "llama_cpp")
    notes = [*plain.notes, *made.header.notes, *made.words.notes]
    if plain.quantized:
        notes.append(f"{written.kept} of {len(plain.quantized)} matrices in few bits keep their codes")
    if kind in ("q8_0", "q4_0") and (wide := written.matrices.get("f16")):
        notes.append(f"{wide} matrices stay in f16: their width is no multiple of 32")
    return Export(
        path=staging,
        type=kind,
        num_bytes=staging.stat().st_size,
        matrices=written.matrices,
        notes=tuple(notes),
        checks=() if unchecked else tuple(gguf_file.check(staging, made, tokenizer, renderer)),
        unchecked=unchecked,
    )


def _unchecked(settings: ExportSettings, missing: str) -> str:
    if not settings.check:
        return "not asked for (--no-check)"
    return f"the module {missing} is not installed" if missing else ""


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
