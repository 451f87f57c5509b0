"""What the four pretraining filters and the personal-data masks are worth on labelled documents, and on real text.

    python bench/filters.py [--part develop] [--data ../shared/data --mb 20] [--save]

Precision, recall and the share of clean documents taken, per filter and language, with 95 % intervals (Wilson), on the
held-out part of tests/data/corpus/labelled: invented documents, two fifths of them hard cases to keep (news of hate
crimes, sex education, shops that deliver, imprints). Rules, lists and weights were made on the other part alone.
Then hosts put together from those pages, and with `--data` how many real documents each filter takes out of the first
so many megabytes of every source. Prints tables and one final JSON line; `--save` also writes it to
bench/results/filters.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smelt.data.corpus.aggregators import AGGREGATOR, hosts_to_drop
from smelt.data.corpus.documents import LANGUAGES
from smelt.data.corpus.labelled import KEEP, Counts, Labelled, mask_counts, read_labelled, taken
from smelt.data.corpus.page import Page
from smelt.data.corpus.pieces import make_document
from smelt.data.corpus.readers import Meter
from smelt.data.corpus.text_sources import SEED_FILTERS, SOURCES
from smelt.evals.stats import clustered, proportion

LABELLED = Path(__file__).parents[1] / "tests" / "data" / "corpus" / "labelled"
RESULTS = Path(__file__).parent / "results" / "filters.json"
NAMES = (*(one.name for one in SEED_FILTERS), "any")
HOST_PAGES = 24
HOST_SHARES = (0.0, 0.25, 0.75, 1.0)  # of pages that aggregate; the rule drops a host from a half on


def shown(counts: Counts) -> dict[str, Any]:
    """A result row of masks."""
    return {
        "recall": proportion(counts.hits, counts.hits + counts.misses),
        "precision": proportion(counts.hits, counts.hits + counts.false_alarms),
    }


def line(name: str, row: dict[str, Any]) -> str:
    cells = []
    for figure in row.values():
        low, high = figure["interval95"]
        cells.append(f"{figure['value']:6.3f} [{low:.2f}, {high:.2f}] n={figure['n']:<4d}")
    return f"{name:18s}" + "  ".join(cells)


def figures(documents: Sequence[Labelled], verdicts: Sequence[set[str]], name: str) -> dict[str, Any]:
    """A result row of filters: recall, precision, share of clean documents taken.

    Texts of one theme in several languages are counted together.
    """
    sought = [one.label != KEEP if name == "any" else one.label == name for one in documents]
    found = [bool(names) if name == "any" else name in names for names in verdicts]
    rows = [(one.theme, is_sought, is_found) for one, is_sought, is_found in zip(documents, sought, found, strict=True)]
    clean = [(one.theme, is_found) for one, is_found in zip(documents, found, strict=True) if one.label == KEEP]
    return {
        "recall": clustered([f for _, s, f in rows if s], [theme for theme, s, _ in rows if s]),
        "precision": clustered([s for _, s, f in rows if f], [theme for theme, _, f in rows if f]),
        "false_positive_rate": clustered([f for _, f in clean], [theme for theme, _ in clean]),
    }


def filters(documents: Sequence[Labelled]) -> dict[str, Any]:
    verdicts = taken(documents, SEED_FILTERS)
    print(f"{'filter':18s}{'recall':28s}{'precision':28s}false-positive rate")
    found: dict[str, Any] = {}
    for name in NAMES:
        for language in (*LANGUAGES, "all"):
            chosen = [i for i, one in enumerate(documents) if language in (one.document.language, "all")]
            row = figures([documents[i] for i in chosen], [verdicts[i] for i in chosen], name)
            found.setdefault(name, {})[language] = row
            print(line(f"{name} {language}", row))
    return found


def masks(documents: Sequence[Labelled]) -> dict[str, Any]:
    print(f"\n{'mask':18s}{'recall':28s}precision")
    found: dict[str, Any] = {}
    for language in (*LANGUAGES, "all"):
        counts = mask_counts([one for one in documents if language in (one.document.language, "all")])
        rows = {kind: shown(one) for kind, one in counts.items() if one.hits + one.misses + one.false_alarms}
        rows["any"] = shown(sum(counts.values(), start=Counts(hits=0, misses=0, false_alarms=0)))
        found[language] = rows
        for kind in rows if language == "all" else ("any",):
            print(line(f"{kind} {language}", rows[kind]))
    return found


def hosts(documents: Sequence[Labelled], num_hosts: int = 10) -> dict[str, Any]:
    """Hosts of pages drawn from the documents: is a host dropped exactly where half of its pages should go?"""
    verdicts = [AGGREGATOR.name in names for names in taken(documents, (AGGREGATOR,))]
    right, total = 0, 0
    for language in LANGUAGES:
        ours = [i for i, one in enumerate(documents) if one.document.language == language]
        bad = [i for i in ours if documents[i].label == AGGREGATOR.name]
        good = [i for i in ours if documents[i].label != AGGREGATOR.name]
        for share in HOST_SHARES:
            for seed in range(num_hosts):
                rng = random.Random(f"{language} {share} {seed}")
                num_bad = round(share * HOST_PAGES)
                drawn = rng.choices(bad, k=num_bad) + rng.choices(good, k=HOST_PAGES - num_bad)
                drops = Counter({"host": sum(verdicts[i] for i in drawn)})
                right += bool(hosts_to_drop(Counter({"host": HOST_PAGES}), drops)) == (share >= 0.5)
                total += 1
    row = proportion(right, total)
    print(f"\nhosts of {HOST_PAGES} pages judged rightly: {row['value']:.3f} of {total}")
    return row


def real_text(data: Path, num_bytes: int) -> dict[str, Any]:
    """Documents each filter takes out of the first `num_bytes` of every source that lies under `data`."""
    found: dict[str, Any] = {}
    whole = Counter[str]()
    for source in SOURCES:
        if not all((data / name).exists() for name in source.files):
            continue
        counts, size = Counter[str](), 0
        for raw in source.texts(data, Meter()):
            if raw.text is None:
                continue
            size += len(raw.text.encode())
            page = Page(make_document(raw, source))
            if page.document.language not in LANGUAGES:
                continue
            names = {one.name for one in SEED_FILTERS if one.rule(page) is not None}
            counts.update(["documents", *names, *(["any"] if names else [])])
            if size >= num_bytes:
                break
        found[source.name] = {name: counts[name] for name in ("documents", *NAMES)}
        whole.update(counts)
        print(f"{source.name:12s}" + "  ".join(f"{name} {counts[name]}" for name in ("documents", *NAMES)))
    found["any"] = proportion(whole["any"], whole["documents"])
    print(f"taken of {whole['documents']} real documents: {100 * found['any']['value']:.3f} %")
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", choices=("held_out", "develop"), default="held_out")
    options.add_argument("--data", type=Path)
    options.add_argument("--mb", type=float, default=20)
    options.add_argument("--save", action="store_true")
    arguments = options.parse_args()
    documents = read_labelled(LABELLED / f"{arguments.part}.jsonl")
    labels = Counter(one.label for one in documents)
    print(f"{arguments.part}: {len(documents)} documents ({', '.join(f'{n} {c}' for n, c in labels.items())})\n")
    result: dict[str, Any] = {"bench": "filters", "part": arguments.part, "documents": dict(labels)}
    result |= {"filters": filters(documents), "masks": masks(documents), "hosts": hosts(documents)}
    if arguments.data:
        print()
        result["real_text"] = real_text(arguments.data, int(arguments.mb * 1e6))
    if arguments.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
