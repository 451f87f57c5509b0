"""Lines survive crashes, files are changed when full, and only one recorder writes."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections import Counter
from pathlib import Path

import pytest

from smelt.server.errors import StartError
from smelt.server.recorder import writer as module
from smelt.server.recorder.writer import Background, LineWriter


def test_a_line_torn_by_a_crash_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a":1}\n{"b":' + b"x" * 200_000)
    writer = LineWriter(path, 2**20)
    writer.write({"c": "ü"})
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"c": "ü"}]
    path.write_bytes(b"no line at all")
    LineWriter(path, 2**20).close()
    assert not path.exists()


def test_a_full_file_makes_room_for_the_next(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "t.jsonl", 64)
    for number in range(5):
        writer.write({"number": number, "pad": "x" * 30})
    writer.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["t-0001.jsonl", "t-0002.jsonl", "t-0003.jsonl", "t-0004.jsonl", "t.jsonl"]
    numbers = [json.loads((tmp_path / name).read_text())["number"] for name in files]
    assert numbers == [0, 1, 2, 3, 4]


def test_only_its_owner_reads_it_and_only_one_writes_it(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "t.jsonl", 2**20)
    assert stat.S_IMODE(os.stat(writer.path).st_mode) == 0o600
    with pytest.raises(StartError, match="another recorder"):
        LineWriter(tmp_path / "t.jsonl", 2**20)
    writer.close()
    with pytest.raises(StartError, match="cannot write"):
        LineWriter(tmp_path, 2**20)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LineWriter(tmp_path / "t.jsonl", 2**20)
    writer.write({"a": 1})
    real = os.write
    monkeypatch.setattr(module.os, "write", lambda fd, data: real(fd, data[:4]))
    with pytest.raises(OSError, match="full"):
        writer.write({"b": 2})
    monkeypatch.undo()
    writer.write({"c": 3})
    writer.close()
    assert (tmp_path / "t.jsonl").read_text() == '{"a":1}\n{"c":3}\n'


def test_text_that_is_no_unicode_is_still_a_line(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "t.jsonl", 2**20)
    writer.write({"text": "\ud83d alone"})
    writer.close()
    assert json.loads((tmp_path / "t.jsonl").read_text()) == {"text": "\ud83d alone"}


def test_a_slow_disk_costs_lines_and_not_time() -> None:
    counts: Counter[str] = Counter()
    gate, done = threading.Event(), []

    def work(item: int) -> None:
        gate.wait(10)
        done.append(item)

    background = Background(work, counts)
    for item in range(module._MAX_WAITING + 50):
        background.put(item)
    assert 49 <= counts["disk too slow"] <= 50
    gate.set()
    background.close()
    assert done == list(range(len(done))) and len(done) + counts["disk too slow"] == module._MAX_WAITING + 50
