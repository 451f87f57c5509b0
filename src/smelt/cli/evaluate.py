"""`smelt eval`: a model's scores, each with its interval and what knowing nothing would score."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from smelt.core.sampler import Sampler
    from smelt.evals.cases import Question
    from smelt.evals.suite import Row

REPORT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The command's options."""

    model: Annotated[
        str, typer.Argument(help="A shipped model's name, a folder, a Hugging Face id or a URL (http://…/v1).")
    ] = "spark"
    name: Annotated[str, typer.Option("--model", "-m", help="The model's name at the URL.")] = ""
    data: Annotated[Path | None, typer.Option(help="Folder of public data.", envvar="SMELT_DATA")] = None
    corpus: Annotated[Path | None, typer.Option(help="A corpus of `smelt data build`: its held-out part.")] = None
    suite: Annotated[str, typer.Option(help="Only these suites, by comma (see --list).")] = ""
    limit: Annotated[int, typer.Option(help="At most so many questions a suite; 0: all.", min=0)] = 0
    out: Annotated[Path | None, typer.Option(help="Also write the result here: .json, or .md for tables.")] = None
    results: Annotated[
        Path, typer.Option(help="Folder where answers are kept; asking again is a resume.", envvar="SMELT_RESULTS")
    ] = Path("eval-results")
    compare: Annotated[str, typer.Option(help="Another model, on the same questions: paired differences.")] = ""
    control: Annotated[bool, typer.Option(help="Also score random weights of the same shape (folders only).")] = False
    weights: Annotated[str, typer.Option(help="w8 (8-bit, fast) or fp32 (exact).", envvar="SMELT_WEIGHTS")] = "w8"
    threads: Annotated[int, typer.Option(help="0: what the machine allows.", envvar="SMELT_THREADS")] = 0
    workers: Annotated[int, typer.Option(help="Questions asked at once.", min=1)] = 8
    hour_price: Annotated[float, typer.Option(help="What an hour of this machine costs, for a cost column.")] = 0.0
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False
    show_list: Annotated[bool, typer.Option("--list", help="List the suites and what they need.")] = False


def evaluate_command(options: EvalOptions) -> None:
    """Ask what was not asked before, then print the table or one JSON object."""
    if options.show_list:
        print(listed(options.data))
        return
    report = evaluation(options)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        text = markdown(report) if options.out.suffix == ".md" else json.dumps(report, indent=1, ensure_ascii=False)
        options.out.write_text(text + "\n", "utf-8")
    print(json.dumps(report, ensure_ascii=False) if options.as_json else shown(report))


def listed(data: Path | None) -> str:
    """Every suite with what it asks and what it lacks, and the names for several at once."""
    from smelt.cli.suites import FAMILIES, GROUPS, corpus_family

    lines = []
    for family in (corpus_family(None), *FAMILIES):
        missing = "" if family.available(data) else f"  [needs --data with {' and '.join(family.needs)}]"
        names = f" ({', '.join(family.suites)})" if family.suites else ""
        lines.append(f"{family.name}{names}: {family.about}{missing}")
    return "\n".join([*lines, *(f"{name} = {', '.join(members)}" for name, members in GROUPS.items())])


def asked_of(model: str, options: EvalOptions) -> list[Question]:
    """The chosen questions. What is asked about the model itself has its own answer; behind a URL, the default."""
    from smelt.cli.load import limits_of
    from smelt.cli.suites import questions
    from smelt.data.tasks.about import Limits

    limits = Limits() if _is_url(model) else limits_of(model)
    names = [name.strip() for name in options.suite.split(",") if name.strip()]
    return _limited(questions(names, options.data, options.corpus, limits), options.limit)


def evaluation(options: EvalOptions) -> dict[str, Any]:
    """The whole result as JSON values: scores by suite and language, control, difference, and how they were had."""
    from smelt.evals.compare import compare
    from smelt.evals.needle import table as needle_table
    from smelt.evals.passages import FORM
    from smelt.evals.suite import busy_seconds, summary

    asked = asked_of(options.model, options)
    with opened(options.model, options) as sampler:
        name, fingerprint = sampler.name, sampler.fingerprint
        rows = asked_rows(sampler, asked, options)
    report: dict[str, Any] = {
        "format": REPORT_FORMAT,
        "model": name,
        "fingerprint": fingerprint,
        "weights": None if _is_url(options.model) else options.weights,
        "bits_per_byte_form": FORM,
        "scores": summary(rows),
    }
    if needles := needle_table(rows):
        report["needle"] = needles
    seconds = busy_seconds(rows)
    report["seconds"] = round(seconds, 1)
    if options.hour_price:
        report["cost"] = round(seconds / 3600 * options.hour_price, 6)
    if options.control:
        with random_model(options) as sampler:
            report["control"] = summary(asked_rows(sampler, asked, options))
    if options.compare:
        with opened(options.compare, options) as sampler:
            others = asked_rows(sampler, asked_of(options.compare, options), options)
        report["other"] = {"model": options.compare, "scores": summary(others)}
        report["difference"] = compare(rows, others)
    return report


def asked_rows(sampler: Sampler, asked: Sequence[Question], options: EvalOptions) -> list[Row]:
    """Rows of every question, kept in a file of the model's own under the results folder."""
    from smelt.evals.store import Store
    from smelt.evals.suite import run

    store = Store(options.results / f"{_slug(f'{sampler.name} {sampler.fingerprint}')}.jsonl")
    progress = Progress(sampler.name, len(asked))
    try:
        return run(sampler, asked, store=store, workers=options.workers, progress=progress)
    finally:
        progress.close()
        store.close()


@contextmanager
def opened(model: str, options: EvalOptions) -> Iterator[Sampler]:
    """The model at a URL, or loaded here."""
    if _is_url(model):
        from smelt.evals.client import HTTPSampler

        if not options.name:
            raise InvalidRequestError("a URL may serve many models; say which with --model NAME")
        key = os.environ.get("OPENAI_API_KEY", "none")
        with closing(HTTPSampler(model, options.name, api_key=key, timeout_s=600)) as sampler:
            yield sampler
        return
    from smelt.cli.load import load_llm

    llm = load_llm(model, weights=options.weights, threads=options.threads)
    try:
        yield llm
    finally:
        llm.close()


@contextmanager
def random_model(options: EvalOptions) -> Iterator[Sampler]:
    """A model of the same shape and tokenizer, never trained."""
    import tempfile

    from smelt.checkpoint import resolve_model

    if _is_url(options.model):
        raise InvalidRequestError("--control needs a folder: random weights of a model behind a URL cannot be made")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "random_weights"
        random_weights(resolve_model(options.model), folder)
        with opened(str(folder), options) as sampler:
            yield sampler


def random_weights(folder: Path, control: Path) -> None:
    """Write a folder of the same shape and tokenizer with untrained weights, always the same ones; needs torch."""
    from smelt.checkpoint import open_checkpoint, save_checkpoint
    from smelt.model.decoder import Decoder

    model = Decoder(open_checkpoint(folder).config)
    model.init_weights(1)
    files = {path.name: path.read_bytes() for path in folder.glob("tokenizer*.json")}
    save_checkpoint(control, model.config, model.tensors(), dtype="BF16", files=files)


def shown(report: dict[str, Any]) -> str:
    """The result for a terminal."""
    from smelt.evals.table import aligned, differences, table

    parts = [f"{report['model']}: {report['seconds']:.0f} s of answering"]
    if "cost" in report:
        parts[0] += f", cost {report['cost']:.4f}"
    parts.append(aligned(table(report["scores"], control=report.get("control"))))
    if "needle" in report:
        parts.append(aligned(report["needle"]))
    if "difference" in report:
        parts.append(f"difference to {report['other']['model']}:\n{aligned(differences(report['difference']))}")
    return "\n\n".join(parts)


def markdown(report: dict[str, Any]) -> str:
    """The result for a page."""
    from smelt.evals.table import differences, table

    parts = [table(report["scores"], control=report.get("control")), report.get("needle", "")]
    parts.append(differences(report["difference"]) if "difference" in report else "")
    return "\n\n".join(part for part in parts if part)


class Progress:
    """One line on standard error: done, rate, time left. On a terminal rewritten, else every ten seconds."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._live = sys.stderr.isatty()
        self._began = self._said = time.monotonic()

    def __call__(self, num_done: int, num_asked: int) -> None:
        """Say how far it is; `num_asked` of `num_done` were not known before."""
        now = time.monotonic()
        if now - self._said < (0.2 if self._live else 10.0):
            return
        self._said = now
        rate = num_asked / (now - self._began)
        left = f"{(self._total - num_done) / rate:.0f} s left" if rate else ""
        text = f"{self._name}: {num_done} of {self._total}, {rate:.1f}/s, {left}"
        print(f"\r{text:<70}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the line."""
        if self._live:
            print(f"\r{'':<70}\r", end="", file=sys.stderr, flush=True)


def _limited(asked: Sequence[Question], limit: int) -> list[Question]:
    from smelt.evals.suite import sample

    by_suite: dict[str, list[Question]] = {}
    for question in asked:
        by_suite.setdefault(question.suite, []).append(question)
    return [one for group in by_suite.values() for one in sample(group, limit or None)]


def _is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:120].strip("-")
