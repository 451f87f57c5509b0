"""A tiny corpus folder and a tokenizer for it."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np

from smelt.data.corpus.documents import Document
from smelt.data.corpus.shards import line_of, pack
from smelt.tokenizer import Tokenizer
from tests.tiny import tiny_tokenizer_files

WORDS = "the quick brown fox jumps over a lazy dog and 今天 天气 很 好 München grüßt def return".split()


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.from_json(tiny_tokenizer_files()[0]["tokenizer.json"].decode())


def make_corpus(folder: Path, shards: dict[str, list[int]], seed: int = 0) -> dict[str, list[str]]:
    """shards: of each source, the number of documents in each of its shards. Returns the texts by source."""
    rng = random.Random(seed)
    texts: dict[str, list[str]] = {}
    listed = []
    for source, counts in shards.items():
        for number, count in enumerate(counts):
            made = [" ".join(rng.choices(WORDS, k=1 + int(np.exp(rng.uniform(0, 5))))) for _ in range(count)]
            documents = [
                Document(text=t, source=source, language="en", key=f"{number}/{i}") for i, t in enumerate(made)
            ]
            packed = pack([line_of(document) for document in documents])
            file = folder / "train" / source / f"docs-{number:05d}.jsonl.zst"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(packed)
            texts.setdefault(source, []).extend(made)
            listed.append(
                {
                    "file": str(file.relative_to(folder)),
                    "source": source,
                    "split": "train",
                    "num_documents": count,
                    "num_bytes": sum(len(text.encode()) for text in made),
                    "sha256": hashlib.sha256(packed).hexdigest(),
                }
            )
    (folder / "manifest.json").write_text(json.dumps({"shards": listed}))
    return texts
