"""What this machine grants: processors, quota, instruction set, memory. For the thread count and `smelt doctor`.

A container's quota is invisible to `os.cpu_count`, and a spinning thread pool wider than its quota runs tens of times
slower than one thread; so the count is the least of affinity, quota and physical cores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smelt.native.extension import core

_ROOT = Path("/")
_READ_BYTES = 256 << 20
_UNLIMITED = 1 << 60  # control groups of version 1 write a number near 2^63 for "no limit"


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadChoice:
    """How many threads a runner takes and why. quota is in processors, None for no limit."""

    affinity: int
    quota: float | None
    physical_cores: int
    threads: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineReport:
    """Processors and memory as this process may use them. Bytes; None where there is no limit or it is unknown.

    isa: the kernels that will run (see cpp/isa.cpp), None where the core is not built. memory_available_bytes is
    what the machine and the control groups leave; memory_limit_bytes the tightest control group's limit.
    """

    affinity: int
    quota: float | None
    physical_cores: int
    threads: int
    reason: str
    isa: str | None
    memory_total_bytes: int
    memory_available_bytes: int
    memory_limit_bytes: int | None


def machine_report(root: Path = _ROOT) -> MachineReport:
    """Look at the machine; `root` is where /proc and /sys are found."""
    from smelt.core.errors import EngineError

    choice = choose_threads(root)
    memory = _meminfo(root)
    total, available = memory.get("MemTotal", 0), memory.get("MemAvailable", memory.get("MemFree", 0))
    limit, left = _memory_limit(root)
    try:
        isa = core().best_isa()
    except EngineError:
        isa = None
    return MachineReport(
        affinity=choice.affinity,
        quota=choice.quota,
        physical_cores=choice.physical_cores,
        threads=choice.threads,
        reason=choice.reason,
        isa=isa,
        memory_total_bytes=total,
        memory_available_bytes=available if left is None else min(available, left),
        memory_limit_bytes=limit,
    )


def choose_threads(root: Path = _ROOT) -> ThreadChoice:
    """min(affinity mask, whole processors of the control group's quota, physical cores), at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    quota = _cpu_quota(root)
    cores = _physical_cores(root, allowed)
    limits = {"affinity mask": len(allowed), "physical cores": cores}
    if quota is not None:
        limits["control group quota"] = max(math.floor(quota), 1)
    threads = max(min(limits.values()), 1)
    binding = [name for name, value in limits.items() if value == threads]
    return ThreadChoice(
        affinity=len(allowed),
        quota=quota,
        physical_cores=cores,
        threads=threads,
        reason=f"{threads}: {' and '.join(binding)}",
    )


def read_bandwidth(threads: int | None = None, num_bytes: int = _READ_BYTES) -> float:
    """GB/s this machine reads memory at, with `threads` threads (None: as many as a runner takes). About 0.3 s.

    Of fewer bytes, read again and again, a cache's rate.
    """
    found: float = core().read_bandwidth(threads or choose_threads().threads, num_bytes)
    return found


def multiply_rate(threads: int | None = None, isa: str | None = None) -> float:
    """GOPS of the 8-bit product in cache (two operations a multiply-add), what prefill is measured against."""
    found: float = core().multiply_rate(threads or choose_threads().threads, isa or "")
    return found


def _physical_cores(root: Path, allowed: set[int]) -> int:
    """Distinct (package, core) pairs among the allowed processors; their number where the kernel does not say."""
    pairs = set()
    for cpu in allowed:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core_id = _read(topology / "physical_package_id"), _read(topology / "core_id")
        if package is None or core_id is None:
            return len(allowed)
        pairs.add((package, core_id))
    return len(pairs)


def _cpu_quota(root: Path) -> float | None:
    """The tightest quota of this process's control groups, in processors."""
    quotas = []
    for folder in _groups(root, "cpu"):
        if (line := _read(folder / "cpu.max")) is not None:  # version 2: "max 100000" or "150000 100000"
            limit, _, period = line.partition(" ")
        else:
            limit, period = _read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""
        if limit.isdigit() and period.isdigit() and int(period) > 0:  # "-1" and "max" are no limit
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def _memory_limit(root: Path) -> tuple[int | None, int | None]:
    """The tightest limit of this process's control groups and the least that any of them leaves, in bytes."""
    limits, left = [], []
    for folder in _groups(root, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or ""
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or ""
        if limit.isdigit() and int(limit) < _UNLIMITED:
            limits.append(int(limit))
            left.append(max(int(limit) - int(used), 0) if used.isdigit() else int(limit))
    return min(limits, default=None), min(left, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups this process is in, and of those above them; versions 2 and 1."""
    base = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and controller not in controllers.split(","):
            continue
        mount = base if number == "0" else base / controllers
        if not mount.is_dir() and number != "0":
            mount = base / controller
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:depth])


def _meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = {}
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        amount = rest.split()
        if amount and amount[0].isdigit():
            found[name] = int(amount[0]) * 1024
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
