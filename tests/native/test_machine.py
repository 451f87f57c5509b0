"""Threads and memory as containers and virtual machines grant them, on made-up /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smelt.native import machine, machine_report, multiply_rate, read_bandwidth


@pytest.fixture
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def _topology(*core_ids: int) -> dict[str, str]:
    files = {}
    for cpu, core_id in enumerate(core_ids):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/core_id"] = str(core_id)
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"] = "0"
    return files


@pytest.mark.usefixtures("four_processors")
class TestThreads:
    def test_without_any_files_affinity_decides(self, tmp_path: Path) -> None:
        assert machine.choose_threads(tmp_path).threads == 4

    def test_hyper_threads_count_once(self, tmp_path: Path) -> None:
        choice = machine.choose_threads(_write(tmp_path, _topology(0, 1, 0, 1)))
        assert (choice.threads, choice.physical_cores, choice.reason) == (2, 2, "2: physical cores")

    @pytest.mark.parametrize(
        ("quota", "threads"),
        [("max 100000", 4), ("350000 100000", 3), ("199999 100000", 1), ("20000 100000", 1), ("broken", 4)],
    )
    def test_quota_version_2(self, tmp_path: Path, quota: str, threads: int) -> None:
        """8 threads on a quota of 4 answered 45 times slower than 4, and nothing said so (ollama#17916)."""
        files = {"proc/self/cgroup": "0::/app/inner", "sys/fs/cgroup/app/inner/cpu.max": quota}
        assert machine.choose_threads(_write(tmp_path, files)).threads == threads

    def test_a_parents_quota_binds_too(self, tmp_path: Path) -> None:
        files = {
            "proc/self/cgroup": "0::/app/inner",
            "sys/fs/cgroup/app/inner/cpu.max": "max 100000",
            "sys/fs/cgroup/app/cpu.max": "200000 100000",
            "sys/fs/cgroup/cpu.max": "300000 100000",
        }
        choice = machine.choose_threads(_write(tmp_path, files))
        assert (choice.threads, choice.quota, choice.reason) == (2, 2.0, "2: control group quota")

    @pytest.mark.parametrize(("quota", "threads"), [("-1", 4), ("250000", 2)])
    def test_quota_version_1(self, tmp_path: Path, quota: str, threads: int) -> None:
        group = "sys/fs/cgroup/cpu,cpuacct/docker/abc"
        files = {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
            f"{group}/cpu.cfs_quota_us": quota,
            f"{group}/cpu.cfs_period_us": "100000",
        }
        assert machine.choose_threads(_write(tmp_path, files)).threads == threads


def test_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:       2000 kB\nMemFree: 500 kB\nMemAvailable:   1500 kB",
        "proc/self/cgroup": "0::/app",
        "sys/fs/cgroup/app/memory.max": "1024000",
        "sys/fs/cgroup/app/memory.current": "24000",
    }
    report = machine_report(_write(tmp_path, files))
    assert (report.memory_total_bytes, report.memory_limit_bytes) == (2_048_000, 1_024_000)
    assert report.memory_available_bytes == 1_000_000


def test_no_limit_in_version_1_is_no_limit(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 2000 kB\nMemAvailable: 1500 kB",
        "proc/self/cgroup": "5:memory:/",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    }
    report = machine_report(_write(tmp_path, files))
    assert report.memory_limit_bytes is None and report.memory_available_bytes == 1_536_000


def test_this_machine_is_reported() -> None:
    report = machine_report()
    assert 1 <= report.threads <= report.affinity
    assert report.isa in ("portable", "avx2", "avxvnni", "avx512vnni")
    assert 0 < report.memory_available_bytes <= report.memory_total_bytes


def test_read_bandwidth_is_a_plausible_number() -> None:
    assert 0.5 < read_bandwidth(1) < 2000


def test_multiply_rate_is_a_plausible_number() -> None:
    assert 0.5 < multiply_rate(1, "portable") < 10_000
