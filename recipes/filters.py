"""The weights of the learned part of the filters: from labelled documents, and real ones that are taken for clean.

    python recipes/filters.py --labelled tests/data/corpus/labelled/develop.jsonl --data ../shared/data [--out FILE]

Logistic regression by stochastic gradient descent, a filter at a time, a quarter of a minute on one core. First five
times on four fifths of the material, texts of one theme never on both sides: from the scores of the fifth left out each
filter's limit is taken, the lowest one from which on at most one in thirty of the documents to keep (hard cases, all of
them) and one in a thousand real windows are taken. Then once on everything. Prints what was found and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smelt.data.corpus.documents import LANGUAGES, Document
from smelt.data.corpus.labelled import KEEP, Labelled, read_labelled
from smelt.data.corpus.learned import F32, NUM_BUCKETS, features, windows
from smelt.data.corpus.page import Page
from smelt.data.corpus.pieces import make_document
from smelt.data.corpus.readers import Meter
from smelt.data.corpus.text_sources import SOURCES

OUT = Path(__file__).parents[1] / "src" / "smelt" / "data" / "corpus" / "words" / "learned.npz"
NAMES = ("hate", "adult", "spam")
FOLDS = 5
EPOCHS = 20
STEP = 8.0
DECAY = 1e-5
SOUGHT_WEIGHT = 5.0  # the sought are few
PER_SOURCE = 350
CLEAN_SHARE, REAL_SHARE = 1 / 30, 1 / 1000
Row = tuple[npt.NDArray[np.int64], F32]


def fitted(rows: Sequence[Row], sought: npt.NDArray[np.bool_]) -> tuple[F32, float]:
    """Weights [NUM_BUCKETS] and bias; the same for the same rows."""
    weights, bias = np.zeros(NUM_BUCKETS, np.float32), -3.0
    for epoch in range(EPOCHS):
        step = STEP * (1 - epoch / EPOCHS)
        for i in np.random.default_rng(epoch).permutation(len(rows)).tolist():
            ids, values = rows[i]
            logit = float(np.clip(weights[ids] @ values + bias, -30, 30))
            error = (1 / (1 + np.exp(-logit)) - sought[i]) * (SOUGHT_WEIGHT if sought[i] else 1.0)
            weights[ids] -= np.float32(step) * (np.float32(error) * values + np.float32(DECAY) * weights[ids])
            bias -= 0.05 * step * error
    return weights, float(bias)


def real_windows(data: Path) -> list[Row]:
    """One window of each of the first documents of every source under `data`, a later one in each next document."""
    found: list[Row] = []
    for source in SOURCES:
        count = 0
        if not all((data / name).exists() for name in source.files):
            continue
        for raw in source.texts(data, Meter()):
            document = make_document(raw, source)
            if len(document.text) < 200 or document.language not in LANGUAGES:
                continue
            stretches = list(windows(Page(document).unquoted, document.language))
            found.append(features(stretches[count % len(stretches)]))
            count += 1
            if count == PER_SOURCE:
                break
    return found


def limit(scores: F32, sought: npt.NDArray[np.bool_], clean: npt.NDArray[np.bool_], real: F32) -> float:
    """The lowest score of a sought document above which few enough others lie."""
    for at in np.sort(scores[sought]):
        if np.mean(scores[clean] >= at) <= CLEAN_SHARE and np.mean(real >= at) <= REAL_SHARE:
            return float(at)
    return float(scores[sought].max())


def made(documents: Sequence[Labelled], real: Sequence[Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is stored, and what cross-validation found."""
    rows = [window_of(one.document) for one in documents]
    folds = np.array([zlib.crc32(one.theme.encode()) % FOLDS for one in documents])
    real_folds = np.arange(len(real)) % FOLDS
    clean = np.array([one.label == KEEP for one in documents])
    stored: dict[str, list[Any]] = {name: [] for name in ("weights", "scales", "biases", "limits")}
    report: dict[str, Any] = {}
    for name in NAMES:
        sought = np.array([one.label == name for one in documents])
        scores, real_scores = np.zeros(len(rows), np.float32), np.zeros(len(real), np.float32)
        for fold in range(FOLDS):
            ours, theirs = np.flatnonzero(folds != fold).tolist(), np.flatnonzero(real_folds != fold).tolist()
            learn = [rows[i] for i in ours] + [real[i] for i in theirs]
            weights, bias = fitted(learn, np.concatenate([sought[ours], np.zeros(len(theirs), bool)]))
            for i in np.flatnonzero(folds == fold).tolist():
                scores[i] = weights[rows[i][0]] @ rows[i][1] + bias
            for i in np.flatnonzero(real_folds == fold).tolist():
                real_scores[i] = weights[real[i][0]] @ real[i][1] + bias
        at = limit(scores, sought, clean, real_scores)
        report[name] = {
            "limit": round(at, 3),
            "recall": [int((scores[sought] >= at).sum()), int(sought.sum())],
            "clean_taken": [int((scores[clean] >= at).sum()), int(clean.sum())],
            "real_taken": [int((real_scores >= at).sum()), len(real)],
        }
        print(name, report[name], flush=True)
        weights, bias = fitted([*rows, *real], np.concatenate([sought, np.zeros(len(real), bool)]))
        scale = float(np.abs(weights).max()) / 127
        for key, value in (("weights", np.round(weights / scale)), ("scales", scale), ("biases", bias), ("limits", at)):
            stored[key].append(value)
    kinds = {"weights": np.int8, "scales": np.float32, "biases": np.float32, "limits": np.float32}
    arrays = {key: np.array(value, kinds[key]) for key, value in stored.items()}
    return {"names": np.array(NAMES), **arrays}, report


def window_of(document: Document) -> Row:
    """Features of a labelled document's first window; they are written to be about as long as one."""
    return features(next(windows(Page(document).unquoted, document.language)))


def main() -> None:
    """Make the weights and write them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--labelled", type=Path, required=True)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=OUT)
    arguments = options.parse_args()
    stored, report = made(read_labelled(arguments.labelled), real_windows(arguments.data))
    np.savez_compressed(arguments.out, **stored)
    print(json.dumps({"recipe": "filters", "bytes": arguments.out.stat().st_size, "cross_validation": report}))


if __name__ == "__main__":
    main()
