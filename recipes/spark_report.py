"""Writes the shipped model's measured numbers into README.md and docs/evals.md, from its card.

python -m recipes.spark_report
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from smelt.evals import table as results

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "src/smelt/shipped/spark/card.json"
HEADLINES = {
    "tool_known": "picks the right tool and every argument, known tools, new wording",
    "tool_unseen": "the same with tools it never saw",
    "no_tool": "answers in text when no offered tool fits",
    "tool_result": "says a tool's result completely",
    "extract_free": "labelled lines into a given schema, all fields",
    "extract": "sentences into a given schema, new wording or new kind of record, all fields",
    "classify": "one of 2 to 5 labels for a message",
    "service": "customer-service reply: right next step, right order number",
    "facts": "answers from facts in the system prompt",
    "bfcl_simple_python": "BFCL simple (never trained on)",
    "bfcl_multiple": "BFCL multiple",
    "bfcl_irrelevance": "BFCL irrelevance",
}


def table(card: dict[str, Any], names: dict[str, str]) -> str:
    """A Markdown table of suites: exact share with its 95 % interval, n, and the random-weights control."""
    scores, control = card["scores"]["spark"], card["scores"]["random_weights_same_grammar"]
    return results.table(scores, control=control, names=names)


def rewritten(page: str, text: str) -> str:
    """`page` with what stands between the two marker comments replaced."""
    pattern = r"(<!-- spark's scores -->\n).*?(\n<!-- end -->)"
    return re.sub(pattern, lambda found: found[1] + text + found[2], page, flags=re.DOTALL)


def pages(card: dict[str, Any]) -> dict[Path, str]:
    """Each page's path and what it should say."""
    every = {suite: suite for suite in card["scores"]["spark"]}
    tables = {ROOT / "README.md": HEADLINES, ROOT / "docs/evals.md": every}
    return {path: rewritten(path.read_text(), table(card, names)) for path, names in tables.items()}


def main() -> None:
    """Rewrite the pages."""
    for path, text in pages(json.loads(CARD.read_text())).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
