"""How fast is each stage of `smelt data build`, per language, and does our MinHash keep up with `datasketch`?

    python bench/corpus.py --data ../shared/data [--mb 20]

Reads so many megabytes of English, German and Chinese Wikipedia and times the stages in processor seconds of one
process (a shared machine's clock says little). datasketch is timed on the first hundred documents, if installed.
Prints a card and one final JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smelt.data.corpus import dedup, personal
from smelt.data.corpus.decontaminate import build_index, evaluation_sets
from smelt.data.corpus.filters import judge
from smelt.data.corpus.page import Page
from smelt.data.corpus.pieces import make_document
from smelt.data.corpus.readers import Meter
from smelt.data.corpus.shards import line_of, pack
from smelt.data.corpus.text_sources import SOURCES, TextSource

WIKIS = ("enwiki", "dewiki", "zhwiki")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start_s = time.process_time()
    return work(), time.process_time() - start_s


def read(source: TextSource, data: Path, num_bytes: int) -> list[Any]:
    found, size = [], 0
    for raw in source.texts(data, Meter()):
        found.append(raw)
        size += len((raw.text or "").encode())
        if size >= num_bytes:
            break
    return found


def stages(source: TextSource, data: Path, num_bytes: int, index: Any) -> dict[str, Any]:
    raws, read_s = timed(lambda: read(source, data, num_bytes))
    documents, clean_s = timed(lambda: [make_document(raw, source) for raw in raws])
    pages = [Page(document) for document in documents]
    verdicts, filter_s = timed(lambda: [judge(page, source.filters) for page in pages])
    kept = [page for page, verdict in zip(pages, verdicts, strict=True) if verdict is None]
    _, mask_s = timed(lambda: [personal.mask(page.text) for page in kept])
    _, hits_s = timed(lambda: [index.hits(page.hashes) for page in kept])
    _, minhash_s = timed(lambda: [dedup.signature(page.hashes) for page in kept])
    _, pack_s = timed(lambda: pack([line_of(page.document) for page in kept]))
    seconds = {
        "read": read_s,
        "clean": clean_s,
        "filter": filter_s,
        "mask": mask_s,
        "decontaminate": hits_s,
        "minhash": minhash_s,
        "pack": pack_s,
    }
    size = sum(len((raw.text or "").encode()) for raw in raws) / 1e6
    return {
        "mb": size,
        "documents": len(raws),
        "mb_per_s": {name: size / max(s, 1e-9) for name, s in seconds.items()},
        "all_mb_per_s": size / sum(seconds.values()),
        "all_documents_per_s": len(raws) / sum(seconds.values()),
        "rival": rival(kept[:100]),
    }


def rival(pages: list[Page]) -> dict[str, float] | None:
    """MinHash of the same 5-grams, as many permutations, the library's batch call."""
    try:
        from datasketch import MinHash
    except ImportError:
        return None

    def theirs(page: Page) -> None:
        words = list(page.text) if page.is_chinese else page.lower.split()
        grams = {" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)}
        MinHash(num_perm=dedup.NUM_HASHES).update_batch(list(grams))

    _, theirs_s = timed(lambda: [theirs(page) for page in pages])
    _, ours_s = timed(lambda: [dedup.signature(Page(page.document).hashes) for page in pages])
    return {"datasketch_s": theirs_s, "ours_s": ours_s, "ratio": theirs_s / ours_s}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--mb", type=float, default=20)
    arguments = options.parse_args()
    index, index_s = timed(lambda: build_index(evaluation_sets(arguments.data)))
    result: dict[str, Any] = {"index_s": index_s, "index_ngrams": len(index.grams)}
    for source in SOURCES:
        if source.name in WIKIS:
            result[source.name] = found = stages(source, arguments.data, int(arguments.mb * 1e6), index)
            speeds = ", ".join(f"{name} {speed:.1f}" for name, speed in found["mb_per_s"].items())
            print(f"{source.name}: {found['all_mb_per_s']:.2f} MB/s ({speeds})")
    result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(result))


if __name__ == "__main__":
    main()
