"""The end of a build: what repeats goes, the rest is split and written, and the folder describes itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smelt.data.corpus import dedup
from smelt.data.corpus.aggregators import hosts_to_drop
from smelt.data.corpus.decontaminate import COMMON_DOCUMENTS, MANY_GRAMS, NGRAM_LEN, Index
from smelt.data.corpus.documents import LANGUAGES
from smelt.data.corpus.pieces import DOCUMENT_ROW, Drop, PieceFiles, PieceReport, total
from smelt.data.corpus.plan import Settings
from smelt.data.corpus.shards import SPLITS, ShardWriter, Split, read_lines, write_whole
from smelt.data.corpus.text_sources import TextSource

_MAX_VALID_SHARE = 0.1
Tell = Callable[[str, str, float, int, int], None]


@dataclass(slots=True)
class _Source:
    """One source's pieces; its kept documents are numbers `start` to `end` of the whole."""

    source: TextSource
    files: list[PieceFiles]
    report: PieceReport
    start: int
    end: int


def finish(
    out: Path,
    plan: dict[str, Any],
    settings: Settings,
    sources: Sequence[TextSource],
    files: list[list[PieceFiles]],
    tell: Tell,
) -> dict[str, Any]:
    """Compare the documents of all pieces, write shards, drops.json and, last, manifest.json, which is returned."""
    parts = _numbered(sources, files)
    rows = np.concatenate(
        [np.empty(0, DOCUMENT_ROW), *(np.load(f.path("rows.npy")) for part in parts for f in part.files)]
    )
    tell("compare", "", 0.0, 0, 0)
    dropped = _dropped(out / "work", parts, rows)
    for rule, flags in dropped.items():
        for part in parts:
            _count(part.report, rule, rows[part.start : part.end], flags[part.start : part.end])
    keep = ~np.logical_or.reduce(list(dropped.values()))
    shares = _valid_shares(rows, keep, settings)
    tell("write", "", 0.0, 0, 0)
    shards, languages = _write(out, parts, rows, keep, shares, tell)
    drops = {
        part.source.name: {rule: asdict(drop) for rule, drop in sorted(part.report.drops.items())} for part in parts
    }
    write_whole(out / "drops.json", (json.dumps(drops, indent=1) + "\n").encode())
    index = Index.load(out / "work" / "index.npz")
    manifest = {
        "plan": plan,
        "sources": [_described(part, keep) for part in parts],
        "decontamination": {
            "sets": list(index.names),
            "num_ngrams": len(index.grams),
            "ngram_tokens": NGRAM_LEN,
            "unless_in_documents": COMMON_DOCUMENTS,
            "always_from_ngrams": MANY_GRAMS,
        },
        "valid_shares": shares,
        "languages": languages,
        "shards": shards,
    }
    write_whole(out / "manifest.json", (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def _numbered(sources: Sequence[TextSource], files: list[list[PieceFiles]]) -> list[_Source]:
    found, at = [], 0
    for source, mine in zip(sources, files, strict=True):
        report = total([one.report() for one in mine])
        found.append(_Source(source, mine, report, at, at + report.num_kept))
        at += report.num_kept
    return found


def _dropped(work: Path, parts: list[_Source], rows: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.bool_]]:
    """rule -> bool [num_documents]; a document goes by one rule only."""
    flags = _contaminated(work, parts, len(rows))
    site = _on_bad_hosts(parts, len(rows)) & ~np.logical_or.reduce([np.zeros(len(rows), bool), *flags.values()])
    alive = np.flatnonzero(~np.logical_or.reduce([site, *flags.values()]))
    paths = [one for part in parts for one in part.files]
    signatures = dedup.open_signatures(
        work / "signatures.u32", [one.path("signatures.npy") for one in paths], len(rows)
    )
    everything = bool(len(alive) == len(rows))

    def band(number: int) -> Iterator[npt.NDArray[np.uint64]]:
        keys = (np.load(one.path("bands.npy"), mmap_mode="r")[number] for one in paths)
        yield from keys if everything else [np.concatenate(list(keys))[alive]]

    same = dedup.find(
        rows["digest"][alive],
        [band(number) for number in range(dedup.NUM_BANDS)],
        signatures if everything else signatures[alive],
    )
    exact, near = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    exact[alive[same.exact]] = True
    near[alive[same.near]] = True
    return flags | {"personal data site": site, "exact duplicate": exact, "near duplicate": near}


def _contaminated(work: Path, parts: list[_Source], num_documents: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Evaluation set -> bool [num_documents]: who shares text with it."""
    hits, at = [np.empty((0, 2), np.int64)], 0
    for part in parts:
        for one in part.files:
            hits.append(np.load(one.path("hits.npy")) + np.array([at, 0]))
            at += one.report().num_kept
    flags: dict[str, npt.NDArray[np.bool_]] = {}
    for document, name in Index.load(work / "index.npz").contaminated(np.concatenate(hits)).items():
        flags.setdefault(name, np.zeros(num_documents, bool))[document] = True
    return flags


def _on_bad_hosts(parts: list[_Source], num_documents: int) -> npt.NDArray[np.bool_]:
    """Documents of hosts whose pages mostly aggregate personal data."""
    found = np.zeros(num_documents, bool)
    pages, drops = Counter[str](), Counter[str]()
    for part in parts:
        pages.update(part.report.host_pages)
        drops.update(part.report.host_drops)
    if bad := hosts_to_drop(pages, drops):
        at = 0
        for part in parts:
            for one in part.files:
                for document in read_lines(one.path("jsonl.zst")):
                    found[at] = document.host in bad
                    at += 1
    return found


def _count(report: PieceReport, rule: str, rows: npt.NDArray[Any], flags: npt.NDArray[np.bool_]) -> None:
    gone = rows[flags]
    if len(gone):
        examples = [row["digest"].astype("<u8").tobytes().hex()[:16] for row in gone[:5]]
        report.drops[rule] = Drop(len(gone), int(gone["num_bytes"].sum()), examples)


def _valid_shares(rows: npt.NDArray[Any], keep: npt.NDArray[np.bool_], settings: Settings) -> dict[str, float]:
    """language -> share of documents held out: the usual one, or what gives enough text, at most a tenth."""
    found = {}
    for number, language in enumerate(LANGUAGES):
        size = int(rows["num_bytes"][keep & (rows["language"] == number)].sum())
        if size:
            found[language] = max(settings.valid_share, min(_MAX_VALID_SHARE, settings.valid_min_bytes / size))
    return found


def _write(
    out: Path,
    parts: list[_Source],
    rows: npt.NDArray[Any],
    keep: npt.NDArray[np.bool_],
    shares: dict[str, float],
    tell: Tell,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, dict[str, int]]]]:
    """(shards, language -> split -> counts)."""
    shards: list[dict[str, Any]] = []
    counts: dict[str, dict[str, dict[str, int]]] = {}
    bounds = {language: int(share * 2.0**64) for language, share in shares.items()}
    num_bytes = 0
    for part in parts:
        writers: dict[Split, ShardWriter] = {split: ShardWriter(out, part.source.name, split) for split in SPLITS}
        at = part.start
        for one in part.files:
            for document in read_lines(one.path("jsonl.zst")):
                if keep[at]:
                    split: Split = "valid" if int(rows["split"][at]) < bounds[document.language] else "train"
                    writers[split].add(document)
                    at_language = counts.setdefault(document.language, {}).setdefault(
                        split, {"documents": 0, "bytes": 0, "chars": 0}
                    )
                    at_language["documents"] += 1
                    at_language["bytes"] += document.num_bytes
                    at_language["chars"] += len(document.text)
                    num_bytes += document.num_bytes
                at += 1
            tell("write", part.source.name, at / max(1, len(rows)), num_bytes, at)
        for writer in writers.values():
            writer.close()
            shards += [asdict(shard) for shard in writer.shards]
    return shards, counts


def _described(part: _Source, keep: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "name": part.source.name,
        "licence": part.source.licence,
        "origin": part.source.origin,
        "language": part.source.language or "each text its own",
        "filters": [one.name for one in part.source.filters],
        "read": {"texts": part.report.num_texts, "chars": part.report.num_chars, "bytes": part.report.num_bytes},
        "kept": int(keep[part.start : part.end].sum()),
        "masked": dict(sorted(part.report.masked.items())),
    }
