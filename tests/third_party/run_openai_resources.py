"""openai-python's own tests of chat, completions and models, unmodified, against a live server of random weights.

They are in the package's source distribution, not in its wheel, and want plugins that would act on our suite too, so
both go into a temporary folder: `python -m tests.third_party.run_openai_resources`. Needs a package index.

Left out: `all_params` cases, which send contradictory values on purpose (they are written for a mock), and loose
mode, which checks less than strict. What their fixed ids name is put into the store by plugins/seeded_store.py.
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

HERE = Path(__file__).resolve().parent
PLUGINS = ("pytest", "pytest-asyncio", "pytest-xdist", "inline-snapshot", f"sqlalchemy=={version('sqlalchemy')}")
SUITES = ("chat", "test_completions.py", "test_models.py")
SELECTED = "not all_params and (strict or aiohttp)"


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
    """Print what passed and what failed; exit 1 when something did, or nothing ran."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, python = prepare(folder)
        with running(make_tiny_folder(folder / "tiny"), folder, aliases="*") as server:
            environment = os.environ | {
                "TEST_API_BASE_URL": f"{server.base_url}/v1",
                "SMELT_STORE": str(folder / "store.db"),
                "PYTHONPATH": f"{HERE / 'plugins'}{os.pathsep}{HERE.parents[1] / 'src'}",
            }
            suites = [f"tests/api_resources/{suite}" for suite in SUITES]
            options = ("-p", "seeded_store", "-n", "0", "-q", "-k", SELECTED, "-rA", "--tb=short")
            command = (python, "-m", "pytest", *suites, *options)
            done = _run(*command, cwd=source, env=environment, capture_output=True)
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", done.stdout, re.M)
    passed = [test for outcome, test in outcomes if outcome == "PASSED"]
    failed = [test for outcome, test in outcomes if outcome != "PASSED"]
    if failed or not passed:
        sys.stdout.write(done.stdout + done.stderr)
    sys.stdout.write(f"openai {version('openai')}: {len(passed)} passed, {len(failed)} failed\n")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
