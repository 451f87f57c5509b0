"""`smelt doctor`: what this machine has, what smelt would choose, and what is in the way."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import asdict, dataclass


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
    try:
        from smelt.native import machine_report, read_bandwidth

        report = machine_report()
        bandwidth = read_bandwidth(report.threads)
    except ImportError as error:
        return [Finding("native core", False, f"{error}; run `make setup`")]
    quota = "no quota" if report.quota_cpus is None else f"quota {report.quota_cpus:g}"
    cores = f"{report.affinity} usable, {report.physical_cores} physical, {quota}"
    available_gb = report.available_bytes / 1e9
    return [
        Finding("cores", True, f"{cores}: {report.threads} threads ({report.why})"),
        Finding("instructions", True, report.isa),
        Finding("memory", available_gb > 0.5, f"{available_gb:.1f} of {report.total_bytes / 1e9:.1f} GB available"),
        Finding("memory read", True, f"{bandwidth:.1f} GB/s with {report.threads} threads"),
    ]


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    text = f"{port} is taken; choose another with --port" if taken else f"{port} is free"
    return Finding("port", not taken, text)


def _model(model: str) -> Finding:
    from smelt.checkpoint import open_checkpoint, resolve_model
    from smelt.core.errors import SmeltError

    try:
        checkpoint = open_checkpoint(resolve_model(model))
    except SmeltError as error:
        return Finding("model", False, str(error))
    config = checkpoint.config
    size = sum(path.stat().st_size for path in checkpoint.folder.iterdir() if path.is_file())
    shape = f"{config.family}, {config.num_parameters / 1e6:.1f}M parameters, context {config.context_len}"
    return Finding("model", True, f"{model}: {shape}, {size / 1e6:.1f} MB on disk")
