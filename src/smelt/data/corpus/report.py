"""A corpus's manifest and drops as rows of text, for a terminal or a document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = list[tuple[str, ...]]


def source_rows(manifest: Mapping[str, Any]) -> Rows:
    """source, licence, texts read, MB read, documents kept, MB in train and in valid, masked spans."""
    found: Rows = []
    for source in manifest["sources"]:
        sizes = {
            split: sum(
                s["num_bytes"] for s in manifest["shards"] if (s["source"], s["split"]) == (source["name"], split)
            )
            for split in ("train", "valid")
        }
        read = source["read"]
        masked = ", ".join(f"{count} {kind}" for kind, count in source["masked"].items())
        found.append(
            (
                source["name"],
                source["licence"],
                f"{read['texts']:,}",
                _mb(read["bytes"]),
                f"{source['kept']:,}",
                _mb(sizes["train"]),
                _mb(sizes["valid"], 2),
                masked,
            )
        )
    return found


def language_rows(manifest: Mapping[str, Any]) -> Rows:
    """language, split, documents, MB, characters."""
    return [
        (language, split, f"{at['documents']:,}", _mb(at["bytes"], 2), f"{at['chars']:,}")
        for language, splits in sorted(manifest["languages"].items())
        for split, at in sorted(splits.items())
    ]


def drop_rows(drops: Mapping[str, Mapping[str, Any]]) -> Rows:
    """source, rule, documents, kB, hash of an example; the most frequent rule of a source first."""
    return [
        (source, rule, f"{drop['count']:,}", f"{drop['num_bytes'] / 1e3:,.0f}", (drop["examples"] or [""])[0])
        for source, rules in drops.items()
        for rule, drop in sorted(rules.items(), key=lambda item: (-item[1]["count"], item[0]))
    ]


def _mb(num_bytes: int, digits: int = 1) -> str:
    return f"{num_bytes / 1e6:,.{digits}f}"
