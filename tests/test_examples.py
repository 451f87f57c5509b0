"""The examples, word for word, against the shipped model: the official client and nothing of smelt."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


def test_there_are_examples_and_none_imports_smelt() -> None:
    assert {path.stem for path in EXAMPLES} >= {"chat", "tools", "extract", "long_context"}
    assert not [path.name for path in EXAMPLES if re.search(r"^\s*(from|import) smelt\b", path.read_text(), re.M)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_succeeds(path: Path, live_url: str) -> None:
    environment = os.environ | {"OPENAI_BASE_URL": live_url + "/v1"}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
