"""openai-python's own tests of chat, completions and models, unmodified, against a live server of random weights.

They are in the package's source distribution, not in its wheel, and want plugins that would act on our suite too, so
both go into a temporary folder: `python -m tests.third_party.run_openai_resources`. Needs a package index.

Left out: `all_params` cases, which send contradictory values on purpose (they are written for a mock), and loose
mode, which checks less than strict. What belongs to endpoints that smelt does not have is listed with the result.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.server.live import running
from tests.tiny import make_tiny_folder

PLUGINS = ("pytest", "pytest-asyncio", "pytest-xdist", "inline-snapshot")
SUITES = ("chat", "test_completions.py", "test_models.py")
SELECTED = "not all_params and (strict or aiohttp)"
ABSENT = re.compile(r"completions/test_messages|_(retrieve|update|list|delete)\b.*Completions|Models::\w*_delete")


def _run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], text=True, **options)  # type: ignore[call-overload, no-any-return]


def prepare(folder: Path) -> tuple[Path, Path]:
    """The unpacked source distribution of the installed release, and a Python that can run its tests."""
    release = f"openai=={version('openai')}"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "openai", "-d", folder)
    _run(*pip, release, check=True)
    with tarfile.open(next(folder.glob("openai-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    _run(sys.executable, "-m", "venv", folder / "venv", check=True)
    python = folder / "venv/bin/python"
    _run(python, "-m", "pip", "install", "--quiet", release.replace("==", "[aiohttp]=="), *PLUGINS, check=True)
    return next(path for path in folder.glob("openai-*") if path.is_dir()), python


def main() -> int:
    """Print what passed, what failed for want of an endpoint, and what failed otherwise; exit 1 for the last."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, python = prepare(folder)
        with running(make_tiny_folder(folder / "tiny"), folder, aliases="*") as server:
            environment = os.environ | {"TEST_API_BASE_URL": f"{server.base_url}/v1"}
            suites = [f"tests/api_resources/{suite}" for suite in SUITES]
            command = (python, "-m", "pytest", *suites, "-n", "0", "-q", "-k", SELECTED, "-rA", "--tb=no")
            done = _run(*command, cwd=source, env=environment, capture_output=True)
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", done.stdout, re.M)
    passed = [test for outcome, test in outcomes if outcome == "PASSED"]
    failed = [test for outcome, test in outcomes if outcome != "PASSED"]
    absent = [test for test in failed if ABSENT.search(_turned(test))]
    broken = [test for test in failed if test not in absent]
    sys.stdout.write(f"openai {version('openai')}: {len(passed)} passed, {len(absent)} of endpoints smelt has not, ")
    sys.stdout.write(f"{len(broken)} failed\n" + "".join(f"  {test}\n" for test in (*absent, *broken)))
    if not outcomes:
        sys.stdout.write(done.stdout + done.stderr)
    return 1 if broken or not outcomes else 0


def _turned(test: str) -> str:
    """`file::Class::test[param]` with the class last, so that one pattern can name both."""
    file, group, name = test.split("::", 2)
    return f"{file} {group}::{name} {group}"


if __name__ == "__main__":
    sys.exit(main())
