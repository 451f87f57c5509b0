"""A teacher's answers, computed once for many students.

`build_cache` walks a data stream with a scorer and keeps little of each distribution; called again it goes on where it
was killed. `CachedTeacher` then stands where the teacher stood. Shapes: N learned tokens, k ids kept, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch

from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.data.batches import Batch
from smelt.train.objectives import on_device
from smelt.train.teachers import cache_format as disk
from smelt.train.teachers.cache_format import CacheSettings, Kept
from smelt.train.teachers.signals import Sampled, TopK


class Scorer(Protocol):
    """What a cache is built with: a model in memory (`cache_scorer`) or behind a URL (`url`)."""

    @property
    def fingerprint(self) -> str:
        """Names the teacher."""
        ...

    @property
    def vocab_len(self) -> int:
        """Ids shared with the student."""
        ...

    def score(self, batches: Sequence[Batch], settings: CacheSettings) -> list[Kept]:
        """The records of each batch."""
        ...


class Chunks(Protocol):
    """The data stream's first half: batches by chunk number."""

    def chunk(self, number: int) -> Sequence[Batch]:
        """Chunk `number` (0, 1, ...); the same number always gives the same batches."""
        ...


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What is told before the first chunk and after each. bytes_total: of the whole cache, as estimated so far."""

    num_done: int
    num_chunks: int
    bytes_total: int
    tokens_per_s: float = 0.0
    left_s: float = 0.0


def report_line(report: CacheReport) -> str:
    """A plain line."""
    size = f"{report.bytes_total / 1e6:,.1f} MB in all"
    if report.tokens_per_s <= 0:
        return f"teacher cache: {report.num_chunks} chunks, about {size}; {report.num_done} are there"
    rate = f"{report.tokens_per_s:,.0f} tokens/s, {report.left_s / 60:.1f} min left"
    return f"teacher cache: {report.num_done}/{report.num_chunks} chunks, {size}, {rate}"


def print_report(report: CacheReport) -> None:
    """`report_line` on the terminal."""
    print(report_line(report), flush=True)  # noqa: T201


def build_cache(
    root: Path,
    scorer: Scorer,
    stream: Chunks,
    num_chunks: int,
    settings: CacheSettings = CacheSettings(),  # noqa: B008 - frozen value
    on_report: Callable[[CacheReport], None] = print_report,
) -> Path:
    """The folder under `root` that holds the answers for the first `num_chunks` chunks; only what is missing is made.

    The folder's name is a digest of the teacher, the stream (its first chunk) and the settings, so changed inputs never
    meet old answers. Raises InvalidRequestError when the disk has no room for it.
    """
    if settings.method == "top_k" and settings.k > scorer.vocab_len:
        raise InvalidRequestError(f"k is {settings.k}, the vocabulary has {scorer.vocab_len} ids")
    dtype = disk.record_dtype(settings, scorer.vocab_len)
    first = [disk.batch_digest(batch) for batch in stream.chunk(0)]
    stream_name = "/".join(first)
    folder = root / disk.cache_name(scorer.fingerprint, stream_name, settings, scorer.vocab_len)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": disk.FORMAT, "teacher": scorer.fingerprint, "vocab_len": scorer.vocab_len}
    disk.write_json(folder / "cache.json", {**about, "settings": asdict(settings)})
    missing = [n for n in range(num_chunks) if not (folder / f"chunk-{n:06d}.json").is_file()]
    per_chunk = sum(batch.num_learned for batch in stream.chunk(0))
    _make_room(folder, per_chunk * len(missing) * dtype.itemsize)
    began, num_tokens = time.monotonic(), 0
    report = CacheReport(
        num_done=num_chunks - len(missing), num_chunks=num_chunks, bytes_total=per_chunk * dtype.itemsize * num_chunks
    )
    on_report(report)
    for done, number in enumerate(missing, start=1):
        batches = stream.chunk(number)
        kept = scorer.score(batches, settings)
        disk.write_chunk(folder, number, [disk.batch_digest(batch) for batch in batches], kept, dtype)
        num_tokens += sum(len(one.ids) for one in kept)
        elapsed_s = max(1e-9, time.monotonic() - began)
        report = CacheReport(
            num_done=report.num_done + 1,
            num_chunks=num_chunks,
            bytes_total=round(num_tokens / done * dtype.itemsize * num_chunks),
            tokens_per_s=num_tokens / elapsed_s,
            left_s=elapsed_s / done * (len(missing) - done),
        )
        on_report(report)
    return folder


def _make_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidRequestError(
            f"the teacher cache needs about {needed / 1e6:,.0f} MB, the disk has {free / 1e6:,.0f} MB free: "
            "lower k or the number of chunks"
        )


class CachedTeacher:
    """A cache as a `Teacher`. Raises CheckpointError for a folder that is none, or is not finished."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / "cache.json").read_text())
            self.settings = CacheSettings(**about["settings"])
            self.vocab_len = int(about["vocab_len"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError("sought a teacher cache (a folder with cache.json), found none") from error
        if about["format"] != disk.FORMAT:
            raise CheckpointError(f"the teacher cache has format {about['format']}; this version reads {disk.FORMAT}")
        self.fingerprint = f"{about['teacher'][:16]}/{self.folder.name}"
        self._where: dict[str, tuple[Path, int, int, float]] = {}
        self._shards: dict[Path, disk.Array] = {}
        for path in sorted(self.folder.glob("chunk-*.json")):
            for entry in json.loads(path.read_text())["batches"]:
                place = (path.with_suffix(".npy"), entry["first"], entry["count"], entry["entropy"])
                self._where[entry["digest"]] = place

    @property
    def samples_only(self) -> bool:
        """Drawn ids serve forward KL only."""
        return self.settings.method == "sampled"

    @property
    def temperature(self) -> float:
        """The one the distributions were taken at."""
        return self.settings.temperature

    def signal(self, batch: Batch, device: torch.device) -> Sampled | TopK:
        """Found by the batch's content. Raises CheckpointError for a batch the cache was not built for."""
        digest = disk.batch_digest(batch)
        if digest not in self._where:
            raise CheckpointError(
                f"a batch of shape {list(batch.inputs.shape)} is not among the {len(self._where)} of the teacher "
                "cache: build it from the same stream (same data, tokenizer, packing, seed), for as many chunks as the "
                "run takes"
            )
        shard, first, count, entropy = self._where[digest]
        if shard not in self._shards:
            self._shards[shard] = disk.read_chunk(shard)
        ids, weights, rest = disk.unpack(self._shards[shard][first : first + count])
        if rest is None:
            # A place without an id weighs nothing, so any id may stand there.
            weights /= self.settings.k
            return Sampled(on_device(ids.clip(min=0), device), on_device(weights, device), entropy, self.vocab_len)
        log_probs, log_rest = on_device(weights, device), on_device(rest, device)
        log_probs = log_probs.masked_fill(on_device(ids, device) < 0, -torch.inf)
        surplus = torch.logaddexp(log_probs.logsumexp(-1), log_rest)  # 0 but for the rounding to 16 bits
        return TopK(on_device(ids, device), log_probs - surplus[:, None], log_rest - surplus, self.vocab_len)
