"""The README promises nothing a command does not show: its Python snippet runs, its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_relative_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make (\w+)", README))
    assert {"serve"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_snippets_run(live_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python block, word for word but for the port."""
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet.replace("http://127.0.0.1:8000", live_url), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_doc_links_lead_somewhere() -> None:
    missing = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            if not (page.parent / link).exists():
                missing.append(f"{page.name}: {link}")
    assert not missing


def test_every_room_has_a_page() -> None:
    rooms = {path.parent.name for path in (ROOT / "src" / "smelt").glob("*/__init__.py")} - {"core"}
    assert not {room for room in rooms if not (ROOT / "docs" / f"{room}.md").exists()}


def test_scores_are_the_cards() -> None:
    """README.md and docs/evals.md say what card.json says; `python -m recipes.spark_report` writes them."""
    from recipes.spark_report import CARD, pages

    for path, text in pages(json.loads(CARD.read_text())).items():
        assert "<!-- spark's scores -->" in text
        assert path.read_text() == text, path.name
