"""Raw sources to a corpus folder, in three stages: filter (by pieces, in parallel), compare, write.

Killed at any moment and called again with the same settings, it goes on and ends with the same bytes. Order and
content depend on the sources and settings alone, not on the number of processes, the clock or the machine.

    OUT/manifest.json    sources, licences, hashes of files and shards, settings, counts
    OUT/drops.json       source x rule: count, bytes, a few examples by hash
    OUT/train|valid/SOURCE/docs-00000.jsonl.zst
    OUT/work/            until it is finished: pieces, signatures
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from smelt.core.errors import InvalidRequestError
from smelt.data.corpus import decontaminate, pieces
from smelt.data.corpus.decontaminate import Index, evaluation_sets
from smelt.data.corpus.documents import RawText
from smelt.data.corpus.finish import finish
from smelt.data.corpus.pieces import PieceFiles
from smelt.data.corpus.plan import Settings, check_same, plan_of
from smelt.data.corpus.readers import Meter
from smelt.data.corpus.shards import write_whole
from smelt.data.corpus.text_sources import TextSource, chosen


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a build is: `done` of 1 of the stage, bytes and documents handled in it so far (this run)."""

    stage: str
    source: str
    done: float
    num_bytes: int
    num_documents: int


OnProgress = Callable[[Progress], None]


def build_corpus(out: Path, settings: Settings, on_progress: OnProgress = lambda progress: None) -> dict[str, Any]:
    """Make the corpus in `out`, or what is missing of it, and return its manifest.

    Raises InvalidRequestError where `out` was begun with other settings or a source cannot be found.
    """
    sources = chosen(list(settings.wanted), settings.data)
    work = out / "work"
    on_progress(Progress("look at sources", "", 0.0, 0, 0))
    plan = plan_of(settings, sources)
    if (out / "manifest.json").is_file():
        check_same(json.loads((out / "manifest.json").read_text(encoding="utf-8"))["plan"], plan)
        shutil.rmtree(work, ignore_errors=True)
        found: dict[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        return found
    if (work / "plan.json").is_file():
        check_same(json.loads((work / "plan.json").read_text(encoding="utf-8")), plan)
    elif out.is_dir() and any(path.name != "work" for path in out.iterdir()):
        raise InvalidRequestError(f"{out.name} is neither empty nor a corpus: choose another folder")
    (work / "pieces").mkdir(parents=True, exist_ok=True)
    write_whole(work / "plan.json", json.dumps(plan).encode())
    index = _index(work / "index.npz", settings.data, on_progress)
    all_files = list(_filter(work, settings, sources, index, on_progress))
    manifest = finish(out, plan, settings, sources, all_files, lambda *at: on_progress(Progress(*at)))
    shutil.rmtree(work)
    return manifest


def _index(path: Path, data: Path | None, on_progress: OnProgress) -> Index:
    if path.is_file():
        return Index.load(path)
    on_progress(Progress("index evaluation sets", "", 0.0, 0, 0))
    index = decontaminate.build_index(evaluation_sets(data) if data is not None else ())
    index.save(path.with_suffix(".part.npz"))
    path.with_suffix(".part.npz").replace(path)
    return index


def _filter(
    work: Path, settings: Settings, sources: list[TextSource], index: Index, on_progress: OnProgress
) -> Iterator[list[PieceFiles]]:
    """Process every piece that is not done; yields the pieces of each source in order."""
    pool = _Pool(settings, work / "index.npz") if settings.processes > 1 else None
    num_bytes = num_documents = 0
    try:
        for source in sources:
            files: list[PieceFiles] = []
            meter, num_chars = Meter(), 0
            texts = pieces.cut(source.texts(settings.data, meter), settings.limit_chars, settings.piece_chars)
            for piece in texts:
                one = PieceFiles(work / "pieces", source.name, len(files))
                files.append(one)
                num_chars += sum(len(raw.text or "") for raw in piece)
                if not one.done:
                    if pool:
                        pool.submit(source.word or source.name, piece, one)
                    else:
                        pieces.process(piece, source, index, one)
                    num_bytes += sum(len((raw.text or "").encode("utf-8", "replace")) for raw in piece)
                    num_documents += len(piece)
                done = max(
                    num_chars / (settings.limit_chars or num_chars * 2 + 1),
                    meter.read_bytes / max(1, meter.total_bytes),
                )
                on_progress(Progress("filter", source.name, min(1.0, done), num_bytes, num_documents))
            yield files
        if pool:
            pool.drain(0)
    finally:
        if pool:
            pool.close()


class _Pool:
    """Worker processes with a bounded number of pieces on their way, so that memory is bounded too."""

    def __init__(self, settings: Settings, index: Path) -> None:
        self._most = 2 * settings.processes
        self._waiting: set[Future[None]] = set()
        self._pool = ProcessPoolExecutor(
            settings.processes, get_context("spawn"), initializer=_prepare, initargs=(index, settings.data)
        )

    def submit(self, word: str, piece: list[RawText], files: PieceFiles) -> None:
        """Hand over a piece, waiting while too many are on their way."""
        self.drain(self._most - 1)
        self._waiting.add(self._pool.submit(_process_in_worker, word, piece, files))

    def drain(self, most: int) -> None:
        """Wait until at most `most` pieces are on their way; a worker's error is raised here."""
        while len(self._waiting) > most:
            done, self._waiting = wait(self._waiting, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()

    def close(self) -> None:
        """Stop the workers; pieces not begun are left for the next call."""
        self._pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _prepare(index: Path, data: Path | None) -> None:
    _worker.update(index=Index.load(index), data=data)


def _process_in_worker(word: str, piece: list[RawText], files: PieceFiles) -> None:
    pieces.process(piece, chosen([word], _worker["data"])[0], _worker["index"], files)
