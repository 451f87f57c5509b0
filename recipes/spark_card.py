"""spark's folder: weights, tokenizer, what it can do (card.json) and where it comes from (lineage.json)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def export(*a: Any, **k: Any) -> None:
    raise SystemExit("exported by hand")


def evaluate(*a: Any, **k: Any) -> None:
    return None
