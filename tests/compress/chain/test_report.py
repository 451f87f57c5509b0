"""The report: figures that are those measured, flags where a promise was not kept, a page that needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from smelt.compress.chain.figures import bars, cells, curve, plain
from smelt.compress.chain.flags import final_flags, flags
from smelt.compress.chain.measure import MeasureSettings
from smelt.compress.chain.page import page
from smelt.compress.chain.publish import write_report
from smelt.compress.chain.report import report_of
from smelt.compress.chain.run import Chain, Outcome, run_chain
from smelt.compress.chain.speed import SpeedSettings, measure_speed, middle
from smelt.compress.stage import Work
from smelt.train.finetune.folder import kept_files
from tests.compress.chain.fakes import Scaled, chain, quiet, small_source


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halved(Scaled):
    """Half the bytes: bf16."""

    name: ClassVar[str] = "quantize"

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        save_checkpoint(
            work.out, source.config, source.tensors, dtype="BF16", files=kept_files(source.folder), replace=True
        )
        return {"note": "<script>alert(1)</script>"}


Made = tuple[Chain, Outcome, dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    source = small_source(folder / "source")
    plan = chain(
        source,
        Scaled(factor=0.0),
        Halved(),
        control=Scaled(factor=1.0),
        measuring=MeasureSettings(speed=SpeedSettings(rounds=1, threads=1), suites=("sums",)),
    )
    watch = quiet(tasks=lambda folder, suites: {suite: {"all": {"value": len(folder.name)}} for suite in suites})
    outcome = run_chain(plan, source, folder / "out", watch)
    return plan, outcome, report_of(plan, outcome, name="<small & odd>", command="smelt shrink")


def test_every_figure_is_the_one_measured(made: Made) -> None:
    _, outcome, report = made
    measured = [outcome.source_measured, *(step.measured for step in outcome.steps)]
    assert [row["measured"] for row in report["rows"]] == [dict(each) for each in measured]
    folders = [outcome.source.folder, *(step.artifact.folder for step in outcome.steps)]
    for row, folder in zip(report["rows"], folders, strict=True):
        names = {"config.json", "model.safetensors", "smelt.json", "tokenizer.json", "tokenizer_config.json"}
        assert row["measured"]["bytes"] == sum((folder / name).stat().st_size for name in names)
        assert row["measured"]["parameters"] == open_checkpoint(folder).config.num_parameters
    assert report["rows"][0]["measured"]["kl"]["value"] == 0.0
    assert report["rows"][0]["measured"]["agreement"]["value"] == 1.0
    assert report["rows"][1]["measured"]["tasks"] == {"sums": {"all": {"value": 3}}}
    assert report["change"]["bytes_ratio"] < 0.8
    json.dumps(report)


def test_a_model_that_says_nothing_costs_the_vocabulary(made: Made) -> None:
    """All matrices zero: every token is as likely, so bits per byte are known without the code under test."""
    plan, outcome, _ = made
    config = open_checkpoint(outcome.result.folder).config
    learned = sum(batch.num_learned for batch in plan.material.held_out)
    sought = learned * np.log2(config.vocab_size) / plan.material.held_out_bytes
    assert outcome.steps[0].measured["bits_per_byte"]["value"] == pytest.approx(sought, rel=1e-6)


def test_speed_and_memory_are_of_a_process_of_their_own(made: Made) -> None:
    for row in made[2]["rows"]:
        measured = row["measured"]
        assert measured["decode_tok_s"]["value"] > 0
        assert measured["prefill_tok_s"]["value"] > 0
        assert 5e6 < measured["peak_memory_bytes"] < 120e6, "without this process's torch"


def test_flags_stand_where_promises_were_not_kept(made: Made) -> None:
    """The control is the result itself, so it is as good."""
    assert any("from scratch" in flag for flag in made[2]["flags"])


def figures(**changes: Any) -> dict[str, Any]:
    plain = {
        "parameters": 100,
        "bytes": 1000,
        "bits_per_byte": {"value": 2.0},
        "decode_tok_s": {"value": 50.0, "interval": [48.0, 52.0]},
    }
    return plain | changes


@pytest.mark.parametrize(
    ("name", "after", "sought"),
    [
        ("prune", figures(), ["no fewer parameters", "no fewer bytes", "not measurably faster"]),
        ("prune", figures(parameters=70, bytes=700, decode_tok_s={"value": 80.0, "interval": [78, 82]}), []),
        ("quantize", figures(bytes=500, decode_tok_s={"value": 30.0, "interval": [29, 31]}), ["slower than before"]),
        ("prune", figures(parameters=70, bytes=700, decode_tok_s={"value": 9.0, "interval": [8, 10]}), ["slower than"]),
        ("quantize", figures(bytes=500), []),
        ("quantize", figures(bytes=500, decode_tok_s=None), []),
        ("sparsify", figures(), ["no fewer bytes", "not measurably faster"]),
        ("distil", figures(), ["no better"]),
        ("distil", figures(bits_per_byte={"value": 1.9}), []),
        ("share", figures(parameters=50, bytes=500, bits_per_byte={"value": 2.5}), ["collapsed"]),
        ("prune", figures(parameters=50, bytes=500, bits_per_byte={"value": 9.0}), ["not measurably faster"]),
    ],
)
def test_flags_by_stage(name: str, after: dict[str, Any], sought: list[str]) -> None:
    found = flags(name, {}, figures(), after)
    assert len(found) == len(sought)
    assert all(word in flag for word, flag in zip(sought, found, strict=True))


def test_a_stage_may_say_itself_what_it_claims() -> None:
    assert flags("sparsify", {"claims": []}, figures(), figures()) == []
    assert "no fewer bytes" in flags("anything", {"claims": ["bytes"]}, figures(), figures())[0]
    assert final_flags(figures(), figures(), None) == []


class Page(HTMLParser):
    """What a page asks for: tags, addresses, handlers."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.asked: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(made: Made, tmp_path: Path) -> None:
    write_report(made[2], tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = Page()
    found.feed(text)
    assert found.open == [], "every element is closed"
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(found.tags)
    assert not [name for name, _ in found.asked if name in ("src", "href", "xlink:href") or name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import", text)
    assert "&lt;script&gt;alert(1)" in text, "what a stage says is text"
    assert "&lt;small &amp; odd&gt;" in text
    assert found.tags.count("svg") == 5
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == made[2]


def test_the_page_shows_the_figures_of_the_report(made: Made) -> None:
    report = made[2]
    text = page(report)
    for row in [*report["rows"], report["control"]]:
        bits = row["measured"]["bits_per_byte"]
        assert f"{bits['value']:,.4f} [{bits['interval95'][0]:,.4f}, {bits['interval95'][1]:,.4f}]" in text
        assert f"{row['measured']['decode_tok_s']['value']:,.0f}" in text
        assert cells(row)[2] in text


def test_pictures_are_sound_and_to_scale(made: Made) -> None:
    picture = ElementTree.fromstring(curve(made[2]["rows"]))
    circles = picture.findall(".//circle")
    assert len(circles) == len(made[2]["rows"])
    sizes = [row["measured"]["bytes"] for row in made[2]["rows"]]
    across = [float(circle.attrib["cx"]) for circle in circles]
    assert sorted(range(3), key=lambda i: sizes[i]) == sorted(range(3), key=lambda i: across[i])
    drawn = ElementTree.fromstring(bars("title", [("a", 10.0, "ten"), ("b", 5.0, "five"), ("c", None, "none")]))
    widths = [float(bar.attrib["width"]) for bar in drawn.findall(".//rect")[1:]]
    assert widths[0] == pytest.approx(2 * widths[1], rel=1e-3)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    """Against a distribution whose median is known: the uniform one."""
    rng = random.Random(1)
    for n in (5, 6, 9, 15):
        trials = 4000
        held, level = 0, 0.0
        for _ in range(trials):
            found = middle([rng.random() for _ in range(n)])
            low, high = found["interval"]
            held, level = held + (low <= 0.5 <= high), found["level"]
        assert held / trials == pytest.approx(level, abs=0.015)
        assert level >= 0.95 or n < 6
    samples = [rng.random() for _ in range(9)]
    assert middle(samples)["value"] == median(samples)
    assert middle(samples)["interval"] == [sorted(samples)[1], sorted(samples)[-2]]


def test_a_folder_that_does_not_run_is_a_reason_and_no_figure(tmp_path: Path) -> None:
    found = measure_speed(tmp_path / "absent", SpeedSettings(rounds=1))
    assert found["decode_tok_s"] is None
    assert "absent" in found["reason"]
    assert measure_speed(tmp_path, SpeedSettings(rounds=0))["reason"] == "not asked for"


def test_one_sample_of_speed_accuses_nobody() -> None:
    """With `--rounds 1` an interval has no width, and noise was called "slower than before"."""
    before, after = figures(decode_tok_s=middle([100.0])), figures(bytes=500, decode_tok_s=middle([60.0]))
    assert flags("quantize", {}, before, after) == []
    sure = figures(decode_tok_s=middle([100.0, 101.0, 102.0, 103.0, 104.0, 105.0]))
    assert flags("quantize", {}, sure, after) == []
    slower = figures(bytes=500, decode_tok_s=middle([60.0, 61.0, 62.0, 63.0, 64.0, 65.0]))
    assert "slower than before" in flags("quantize", {}, sure, slower)[0]


def test_labels_of_points_at_one_size_do_not_stand_in_each_other(made: Made) -> None:
    """A repair has the bytes of the pruning before it, and often nearly its bits per byte."""
    row = made[2]["rows"][0]
    drawn = ElementTree.fromstring(curve([{**row, "name": f"stage {i}"} for i in range(4)]))
    heights = sorted(float(each.attrib["y"]) for each in drawn.iter() if (each.text or "").startswith("stage "))
    assert len(heights) == 4
    assert all(low + 12 <= high for low, high in zip(heights, heights[1:], strict=False))


def test_a_gates_figures_are_written_as_people_write_them() -> None:
    assert [plain(value) for value in (1932921.0, 0.02, 0.96832161, 1e6, None)] == [
        "1,932,921", "0.02", "0.968322", "1,000,000", "nothing",
    ]  # fmt: skip
