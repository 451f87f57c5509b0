"""`smelt doctor`: what this machine has, what smelt would choose, and what is in the way."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smelt.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `ok` False is a problem, and the exit status 1."""

    name: str
    ok: bool
    text: str


def doctor_command(*, model: str, port: int, as_json: bool) -> None:
    """Print findings; exit 1 when one of them is a problem."""
    findings = [*_machine(), _port(port), _model(model)]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{'ok' if finding.ok else 'PROBLEM':8s} {finding.name:14s} {finding.text}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


def _machine() -> list[Finding]:
    from smelt.native import machine_report, read_bandwidth

    report = machine_report()
    quota = "no quota" if report.quota is None else f"quota {report.quota:g}"
    cores = f"{report.affinity} usable, {report.physical_cores} physical, {quota}"
    available_gb = report.memory_available_bytes / 1e9
    findings = [
        Finding("cores", True, f"{cores}: threads {report.reason}"),
        Finding(
            "memory", available_gb > 0.5, f"{available_gb:.1f} of {report.memory_total_bytes / 1e9:.1f} GB available"
        ),
    ]
    if report.isa is None:
        return [*findings, Finding("native core", False, "not built; run `make setup`")]
    speed = f"{read_bandwidth(report.threads):.1f} GB/s with {report.threads} threads"
    return [*findings, Finding("native core", True, f"{report.isa} kernels"), Finding("memory read", True, speed)]


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    text = f"{port} is taken; choose another with --port" if taken else f"{port} is free"
    return Finding("port", not taken, text)


def _model(model: str) -> Finding:
    from smelt.checkpoint import open_checkpoint, resolve_model
    from smelt.core.errors import SmeltError
    from smelt.tokenizer import Tokenizer

    try:
        checkpoint = open_checkpoint(resolve_model(model))
        speaks = _speaks(Tokenizer.load(checkpoint.folder))
    except SmeltError as error:
        return Finding("model", False, str(error))
    config = checkpoint.config
    size = sum(path.stat().st_size for path in checkpoint.folder.iterdir() if path.is_file())
    shape = f"{config.family}, {config.num_parameters / 1e6:.1f}M parameters, context {config.context_len}"
    return Finding("model", True, f"{model}: {shape}, {size / 1e6:.1f} MB on disk, {speaks}")


def _speaks(tokenizer: Tokenizer) -> str:
    """Raises UnsupportedError for a template of an unknown format, as loading would."""
    from smelt.chat import renderer_of_folder

    renderer = renderer_of_folder(tokenizer)
    return f"chat format {renderer.name}" if renderer else "no chat format (completions only)"
