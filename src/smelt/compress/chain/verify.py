"""Whether a folder still is what its lineage says: every hash taken again, and what broke where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smelt.compress.chain.publish import PUBLISHED
from smelt.compress.chain.store import changed_files
from smelt.core.errors import CheckpointError
from smelt.train.lineage import broken_at, digest, read_chain


@dataclass(kw_only=True)
class Verification:
    """checked: what was hashed again and is as it was. problems: what is not. unknown: what cannot be told, and why."""

    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing is broken, and something was checked."""
        return not self.problems and bool(self.checked)


def verify(folder: Path) -> Verification:
    """Check a published folder, or `model/` and the finished stages of a chain's folder.

    Raises CheckpointError for a folder that holds neither.
    """
    found = Verification()
    model = folder if (folder / "lineage.json").is_file() else folder / "model"
    stages = sorted((folder / "stages").glob("*/stage.json"))
    if not (model / "lineage.json").is_file() and not stages:
        raise CheckpointError(f"{folder.name}: sought a lineage.json, or a chain's folder with stages; found neither")
    if (model / "lineage.json").is_file():
        _verify_model(model, found)
    for path in stages:
        _verify_stage(path, found)
    return found


def _verify_model(folder: Path, found: Verification) -> None:
    try:
        chain = read_chain(folder)
    except CheckpointError as error:
        found.problems.append(str(error))
        return
    if not chain:
        found.problems.append("lineage.json has no entries")
        return
    if (broken := broken_at(chain)) is not None:
        step = str(chain[broken].get("step", "without a name"))[:40]
        found.problems.append(
            f"lineage.json: entry {broken} ({step}) was changed, or does not follow the one before it"
        )
    else:
        found.checked.append(f"lineage.json: {len(chain)} entries, each with the hash of the one before it")
    _verify_links(chain, found)
    last = chain[-1]
    if last.get("step") == PUBLISHED and isinstance(last.get("files"), dict):
        _verify_files(folder, last["files"], found)
    else:
        _verify_old(folder, chain, found)


def _verify_links(chain: Sequence[Mapping[str, Any]], found: Verification) -> None:
    """Each stage's input is the artifact before it, and its output the hash of its files."""
    at: str | None = None
    for i, entry in enumerate(chain):
        if entry.get("step") == "source" and "artifact" in entry:
            at = entry["artifact"]
        elif "input" in entry and "output" in entry:
            if at is not None and entry["input"] != at:
                found.problems.append(f"lineage.json: entry {i} ({entry['step']}) began with another artifact")
            if digest(entry.get("files")) != entry["output"]:
                found.problems.append(f"lineage.json: entry {i} ({entry['step']}): its files do not make its hash")
            at = entry["output"]


def _verify_files(folder: Path, files: Mapping[str, str], found: Verification) -> None:
    wrong = changed_files(folder, files)
    found.problems += wrong
    if not wrong:
        found.checked.append(f"{len(files)} files, whole, against their sha256")
    known = {*files, "lineage.json"}
    extra = [path.name for path in sorted(folder.iterdir()) if path.name not in known and not path.name.startswith(".")]
    if extra:
        found.problems.append(f"not in the lineage: {', '.join(extra[:5])}")


def _verify_old(folder: Path, chain: Sequence[Mapping[str, Any]], found: Verification) -> None:
    """A lineage from before the chain: its tokenizer and weights, as far as they can be had again."""
    told = False
    for entry in chain:
        if entry.get("step") == "tokenizer" and "sha256" in entry:
            told = True
            _verify_tokenizer(folder, entry["sha256"], found)
    weights = [entry["float32_sha256"] for entry in chain if "float32_sha256" in entry]
    if weights:
        told = True
        _verify_weights(folder, weights[-1], found)
    if not told:
        found.unknown.append("this lineage names no file of the folder, so its files cannot be checked")
    else:
        found.unknown.append("made before lineages named every file: card, configuration and settings are not covered")


def _verify_tokenizer(folder: Path, sought: str, found: Verification) -> None:
    from smelt.tokenizer import Tokenizer

    try:
        same = digest(Tokenizer.load(folder).json) == sought
    except CheckpointError as error:
        found.problems.append(f"tokenizer: {error}")
        return
    (found.checked if same else found.problems).append(
        "tokenizer: as the lineage names it" if same else "tokenizer.json is not the one the lineage names"
    )


def _verify_weights(folder: Path, sought: str, found: Verification) -> None:
    from smelt.checkpoint import open_checkpoint

    try:
        checkpoint = open_checkpoint(folder)
        now = digest({name: digest(checkpoint.tensors[name].tobytes().hex()) for name in checkpoint.tensors})
    except (CheckpointError, OSError) as error:
        found.problems.append(f"weights: {error}")
        return
    if now == sought:
        found.checked.append("weights: as the lineage names them")
    elif checkpoint.stored_dtypes <= {"F32"}:
        found.problems.append("weights: not those the lineage names")
    else:
        stored = ", ".join(sorted(checkpoint.stored_dtypes))
        found.unknown.append(f"weights: the lineage hashed them in float32, before they were stored as {stored}")


def _verify_stage(path: Path, found: Verification) -> None:
    """A finished stage of a chain's folder."""
    name = path.parent.name
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        files, output = dict(document["files"]), document["output"]
    except (ValueError, KeyError, TypeError) as error:
        found.problems.append(f"stages/{name}/stage.json cannot be read: {error!r:.80}")
        return
    wrong = changed_files(path.parent / "out", files)
    if digest(files) != output:
        wrong.append("stage.json was changed: its files do not make its hash")
    found.problems += [f"stages/{name}: {one}" for one in wrong]
    if not wrong:
        found.checked.append(f"stages/{name}: {len(files)} files")
