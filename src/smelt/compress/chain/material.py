"""Material for a chain out of what a user names: the model's own text, a file, or a corpus.

Calibration, what a repair learns from and what is held out never share a row; of a corpus the held-out part is its
own `valid` split. Shapes: R rows, T tokens a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smelt.checkpoint import Checkpoint
from smelt.compress.calibration import SELF, Calibration, CalibrationConfig, load_calibration
from smelt.compress.stage import Material, Progress
from smelt.core.errors import DataError
from smelt.data.batches import Batch
from smelt.data.corpus.shards import manifest_of
from smelt.data.shards import tokenize_corpus
from smelt.data.stream import PackedStream, Texts
from smelt.tokenizer import Tokenizer
from smelt.train.lineage import digest, file_sha256
from smelt.train.loop import Stream


@dataclass(frozen=True, kw_only=True)
class MaterialSettings:
    """calibrate, train_on: "self", a text or JSONL file, or a corpus of `smelt data build`.

    row_len: tokens of a row, at most the model's context; rows: of a batch. train_tokens: read (or written by the
    model) at most; a corpus is streamed whole. held_out_rows: kept back, never learned. calibration: how many
    sequences statistics are taken from.
    """

    calibrate: str = SELF
    train_on: str = SELF
    row_len: int = 512
    rows: int = 4
    train_tokens: int = 100_000
    held_out_rows: int = 64
    calibration: int = 128
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """Rows again and again: chunk n is epoch n, its order a function of seed and n alone."""

    whole: Batch
    rows: int
    seed: int

    def chunk(self, number: int) -> list[Batch]:
        """Every row once, `rows` a batch."""
        order = np.random.default_rng((self.seed, number)).permutation(len(self.whole.inputs))
        return [taken(self.whole, order[i : i + self.rows]) for i in range(0, len(order), self.rows)]


def make_material(
    source: Checkpoint,
    settings: MaterialSettings,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Material, list[dict[str, Any]]]:
    """The material, and for the lineage where it comes from: name, use, hash, licence, bytes or tokens.

    folder: keeps what the model wrote, so that it writes once. Raises DataError where there is too little text, and
    what `load_calibration` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.load(source.folder)
    row_len = min(settings.row_len, source.config.context_len)
    told = [_provenance(settings.train_on, "learned and held out", source)]
    if settings.calibrate != settings.train_on:
        told.append(_provenance(settings.calibrate, "calibration", source))
    if settings.train_on != SELF and Path(settings.train_on).is_dir():
        stream, held_out, name = _of_corpus(Path(settings.train_on), source, tokenizer, settings, row_len)
        calibrated = load_calibration(
            settings.calibrate,
            source,
            _config(settings, settings.calibration, row_len),
            scratch=folder,
            on_progress=on_progress,
        )
    else:
        stream, held_out, name, calibrated = _of_rows(source, settings, row_len, folder, on_progress)
    num_bytes = text_bytes(held_out, tokenizer)
    if num_bytes == 0:
        raise DataError(f"held out of {name}: sought text, found none that is learned; give more text")
    material = Material(
        calibration=calibrated,
        held_out=held_out,
        held_out_bytes=num_bytes,
        stream=stream,
        digest=digest([name, calibrated.digest, settings.rows, row_len, settings.seed, _digest(held_out)]),
    )
    return material, told


def _of_rows(
    source: Checkpoint,
    settings: MaterialSettings,
    row_len: int,
    folder: Path,
    on_progress: Callable[[Progress], None],
) -> tuple[Callable[[int], Stream], list[Batch], str, Calibration]:
    """Stream, held-out batches, a name that stands for the content, calibration."""
    wanted = max(2, settings.train_tokens // row_len)
    same = settings.calibrate == settings.train_on
    most = wanted + settings.held_out_rows + (settings.calibration if same else 0)
    config = _config(settings, most, row_len)
    read = load_calibration(settings.train_on, source, config, scratch=folder, on_progress=on_progress)
    whole = _joined(read.batches, source.config.pad_id or 0)
    order = np.random.default_rng(settings.seed).permutation(len(whole.inputs))
    num_held = min(settings.held_out_rows, max(1, len(order) // 10))
    if len(order) < 3:
        raise DataError(
            f"{read.source}: sought at least 3 rows of {row_len} tokens (to learn, to calibrate, to hold out), found "
            f"{len(order)}; give more text or a smaller row_len"
        )
    held, learned = np.sort(order[:num_held]), order[num_held:]
    if same:
        num = min(settings.calibration, max(1, len(learned) // 4))
        calibrated = _calibration(taken(whole, np.sort(learned[:num])), read.source, settings.rows)
        learned = learned[num:]
    else:
        config = _config(settings, settings.calibration, row_len)
        calibrated = load_calibration(settings.calibrate, source, config, scratch=folder, on_progress=on_progress)
    kept = taken(whole, np.sort(learned))

    def stream(seed: int) -> Stream:
        return Rows(kept, settings.rows, seed)

    return stream, _dealt(taken(whole, held), settings.rows), read.digest, calibrated


def _of_corpus(
    corpus: Path, source: Checkpoint, tokenizer: Tokenizer, settings: MaterialSettings, row_len: int
) -> tuple[Callable[[int], Stream], list[Batch], str]:
    """A corpus larger than memory: shards of token ids, streamed; the held-out rows are of its `valid` split."""
    learned, valid = tokenize_corpus(corpus, tokenizer), tokenize_corpus(corpus, tokenizer, split="valid")
    privileges = bool(source.config.num_privileges)

    def packed(texts: Texts, seed: int) -> PackedStream:
        return PackedStream(
            sources=[(texts, 1.0)],
            row_len=row_len,
            rows=settings.rows,
            pad_id=source.config.pad_id or 0,
            seed=seed,
            privileges=privileges,
        )

    def stream(seed: int) -> Stream:
        return packed(Texts(shards=learned, seed=seed), seed)

    room = max(1, settings.held_out_rows // settings.rows)
    tokens = int((valid.lengths - 1).clip(min=0).sum())
    room = min(room, max(1, tokens // (row_len * settings.rows)))
    rows = packed(Texts(shards=valid, seed=settings.seed), settings.seed)
    held_out = [batch for number in range(-(-room // rows.batches_per_chunk)) for batch in rows.chunk(number)]
    return stream, held_out[:room], file_sha256(corpus / "manifest.json")


def text_bytes(batches: Sequence[Batch], tokenizer: Tokenizer) -> int:
    """Bytes of text that the learned targets stand for; control tokens stand for none."""
    lengths = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], np.int64)
    found = 0
    for batch in batches:
        learned = batch.targets[(batch.targets >= 0) & (batch.targets < len(lengths))]
        found += int(lengths[learned].sum())
    return found


def taken(batch: Batch, rows: Any) -> Batch:
    """Some rows of a batch, in the order given."""
    optional = [None if array is None else array[rows] for array in (batch.segment_ids, batch.privileges)]
    return Batch(batch.inputs[rows], batch.targets[rows], *optional)


def _dealt(whole: Batch, rows: int) -> list[Batch]:
    return [taken(whole, slice(i, i + rows)) for i in range(0, len(whole.inputs), rows)]


def _joined(batches: Sequence[Batch], pad_id: int) -> Batch:
    """Batches of one row length as one."""
    segments = [batch.segment_ids for batch in batches if batch.segment_ids is not None]
    privileges = [batch.privileges for batch in batches if batch.privileges is not None]
    return Batch(
        np.concatenate([batch.inputs for batch in batches]),
        np.concatenate([batch.targets for batch in batches]),
        np.concatenate(segments) if len(segments) == len(batches) else None,
        np.concatenate(privileges) if len(privileges) == len(batches) else None,
    )


def _calibration(whole: Batch, source: str, rows: int) -> Calibration:
    batches = tuple(_dealt(whole, rows))
    return Calibration(source=f"{len(whole.inputs)} rows of {source}", digest=_digest(batches), batches=batches)


def _digest(batches: Sequence[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for array in (batch.inputs, batch.targets, batch.segment_ids, batch.privileges):
            if array is not None:
                found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _config(settings: MaterialSettings, num: int, row_len: int) -> CalibrationConfig:
    return CalibrationConfig(
        num_sequences=num,
        max_len=row_len,
        least_tokens=1,
        batch_tokens=row_len * settings.rows,
        temperature=settings.temperature,
        seed=settings.seed,
    )


def _provenance(spec: str, use: str, source: Checkpoint) -> dict[str, Any]:
    if spec == SELF:
        card = source.card or {}
        licence = card.get("licence", "the model's own")
        return {"name": "text of the model itself", "use": use, "model": source.fingerprint, "licence": licence}
    path = Path(spec)
    if path.is_dir():
        manifest = manifest_of(path)
        sources = [{key: row.get(key) for key in ("name", "origin", "licence")} for row in manifest["sources"]]
        return {
            "name": path.resolve().name,
            "use": use,
            "manifest_sha256": file_sha256(path / "manifest.json"),
            "sources": sources,
        }
    return {
        "name": path.name,
        "use": use,
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "licence": "the user's own; not told",
    }
