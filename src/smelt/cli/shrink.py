"""`smelt shrink`: a model made small by a chain of stages, with what each one cost."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.core.errors import InvalidRequestError, TrainingStoppedError

if TYPE_CHECKING:
    from smelt.compress.shrink import Plan, ShrinkSettings, Shrunk
    from smelt.compress.stage import Progress

_PLAIN_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class ShrinkOptions:
    """What `smelt shrink` is told."""

    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face id, or a shipped model's name.")]
    out: Annotated[
        Path | None, typer.Option(help="Folder everything is made in; called again with it, the chain goes on.")
    ] = None
    to: Annotated[str, typer.Option(help="30% (of the bytes), 8MB, 2M-params or 500tok/s; also a gate.")] = ""
    stages: Annotated[str, typer.Option(help="By comma: prune, distil, finetune, quantize (w8), w4, w8a8, ...")] = ""
    changes: Annotated[list[str] | None, typer.Option("--set", help="stage.key=value; repeat.")] = None
    calibrate: Annotated[str, typer.Option(help="self, a text or JSONL file, or a corpus; else as --train-on.")] = ""
    train_on: Annotated[str, typer.Option(help="self (the model writes), a text or JSONL file, or a corpus.")] = "self"
    train_tokens: Annotated[int, typer.Option(help="Tokens read of it, or written by the model.", min=1)] = 100_000
    row_len: Annotated[int, typer.Option(help="Tokens of a row.", min=8)] = 512
    rows: Annotated[int, typer.Option(help="Rows of a batch.", min=1)] = 4
    max_bpb_increase: Annotated[
        float | None, typer.Option(help="Gate: bits per byte may grow by this share (0.02: 2 per cent).")
    ] = None
    min_agreement: Annotated[float | None, typer.Option(help="Gate: share of tokens chosen as the source does.")] = None
    max_bytes: Annotated[int | None, typer.Option(help="Gate: bytes of the result.", min=1)] = None
    min_tok_s: Annotated[float | None, typer.Option(help="Gate: decode speed here, one user.")] = None
    control: Annotated[bool, typer.Option("--control", help="Also train the same shape from scratch.")] = False
    suite: Annotated[str, typer.Option(help="Eval suites to score each stage on, by comma.")] = ""
    limit: Annotated[int, typer.Option(help="At most so many questions a suite.", min=1)] = 30
    data: Annotated[Path | None, typer.Option(help="Folder of public data, for suites.", envvar="SMELT_DATA")] = None
    rounds: Annotated[int, typer.Option(help="Samples of each speed; 0: none is measured.", min=0)] = 9
    name: Annotated[str, typer.Option(help="What the result is called.")] = ""
    seed: Annotated[int, typer.Option(help="Of the material.")] = 0
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and what it needs, and stop.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; progress on standard error.")] = False


def shrink_command(options: ShrinkOptions) -> None:
    """Run the chain, or go on with it; exit status 1 where a gate failed, 130 where it was stopped."""
    from smelt.cli.train import stops
    from smelt.compress.chain.run import Watch
    from smelt.compress.shrink import ShrinkWatch, planned, shrink

    settings = settings_of(options)
    out = options.out or Path("build") / f"{Path(options.model).name}-small"
    if options.dry_run:
        plan = planned(settings)
        print(json.dumps(plan.document(out)) if options.as_json else shown_plan(plan, out))
        return
    if options.out is None:
        raise InvalidRequestError("sought --out DIR, the folder everything is made in (or --dry-run)")
    import threading

    stopping = threading.Event()
    with stops(stopping), view() as told:
        watch = ShrinkWatch(
            chain=Watch(say=told.say, on_progress=told.stage, tasks=scorer(options), stopping=stopping),
            on_material=lambda progress: told.stage(-1, 0, "material", progress),
        )
        try:
            made = shrink(settings, out, watch)
        except TrainingStoppedError as error:
            print(f"smelt: {error}", file=sys.stderr)
            sys.exit(130)
    finish(made, out, as_json=options.as_json)


def settings_of(options: ShrinkOptions) -> ShrinkSettings:
    """The options as the room `compress` takes them."""
    from smelt.compress.chain.gates import Gates
    from smelt.compress.chain.material import MaterialSettings
    from smelt.compress.chain.measure import MeasureSettings
    from smelt.compress.chain.speed import SpeedSettings
    from smelt.compress.shrink import ShrinkSettings

    return ShrinkSettings(
        model=options.model,
        to=options.to,
        stages=_words(options.stages),
        changes=tuple(options.changes or ()),
        material=MaterialSettings(
            calibrate=options.calibrate or options.train_on,
            train_on=options.train_on,
            row_len=options.row_len,
            rows=options.rows,
            train_tokens=options.train_tokens,
            seed=options.seed,
        ),
        gates=Gates(
            max_bpb_increase=options.max_bpb_increase,
            min_agreement=options.min_agreement,
            max_bytes=options.max_bytes,
            min_tok_s=options.min_tok_s,
        ),
        measuring=MeasureSettings(speed=SpeedSettings(rounds=options.rounds), suites=_words(options.suite)),
        control=options.control,
        name=options.name or None,
        command=shlex.join(["smelt", *sys.argv[1:]]),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def scorer(options: ShrinkOptions) -> Callable[[Path, Sequence[str]], Mapping[str, Any]]:
    """Scores of a folder on suites, through the sampler that `smelt eval` uses; answers are kept beside the chain."""

    def scored(folder: Path, suites: Sequence[str]) -> Mapping[str, Any]:
        from smelt.cli.evaluate import EvalOptions, asked_of, asked_rows, opened
        from smelt.evals.suite import summary

        assert options.out is not None
        asked = EvalOptions(
            model=str(folder),
            data=options.data,
            suite=",".join(suites),
            limit=options.limit,
            results=options.out / "answers",
        )
        with opened(str(folder), asked) as sampler:
            return summary(asked_rows(sampler, asked_of(str(folder), asked), asked))

    return scored


def shown_plan(plan: Plan, out: Path) -> str:
    """The plan in lines; times are of the arithmetic alone, at the rate a training step reaches here."""
    from smelt.cli.plan import TRAINING_SHARE
    from smelt.compress.chain.figures import plain
    from smelt.engine.rates import matmul_gflops
    from smelt.train.recipe import known_settings

    told = plan.document(out)
    rate = matmul_gflops() * 1e9 * TRAINING_SHARE
    source = told["source"]
    lines = [f"{source['name']}: {source['parameters']:,} parameters, {source['bytes'] / 1e6:,.2f} MB"]
    for stage, bare in zip(told["stages"], plan.stages, strict=True):
        needed = f"memory {stage['memory_bytes'] / 1e6:,.0f} MB, disk {stage['disk_bytes'] / 1e6:,.0f} MB"
        work = f", training about {stage['flops'] / rate / 60:,.1f} min" if stage["flops"] else ""
        lines.append(f"  {bare.name:<10} at most {needed}{work}")
        lines += [f"             {bare.name}.{key}={value}" for key, value in known_settings(bare).items()]
    lines.append(
        f"free: memory {told['free_memory_bytes'] / 1e6:,.0f} MB, disk {told['free_disk_bytes'] / 1e6:,.0f} MB"
    )
    lines += [f"gate: {gate} {plain(value)}" for gate, value in told["gates"].items()]
    return "\n".join([*lines, *told["notes"]])


def finish(made: Shrunk, out: Path, *, as_json: bool) -> None:
    """Print what came of it; exit status 1 where a gate failed."""
    if as_json:
        print(json.dumps({"made": None if made.folder is None else str(made.folder), "report": made.report}))
    else:
        from rich.console import Console

        from smelt.compress.chain.figures import plain

        Console(width=None if sys.stdout.isatty() else 200).print(table(made.report))
        for flag in made.report["flags"]:
            print(f"red flag: {flag}")
        for gate in made.report["gates"]:
            sought, found = plain(gate["sought"]), plain(gate["found"])
            print(f"gate {gate['gate']}: sought {sought}, found {found}: {_held(gate)}")
        print(out / "report.html")
    if made.folder is None:
        failed = ", ".join(gate["gate"] for gate in made.report["gates"] if not gate["passed"])
        print(f"smelt: {failed} failed: nothing was published; {out / 'report.html'} tells why", file=sys.stderr)
        sys.exit(1)
    if not as_json:
        print(made.folder)


def _held(gate: Mapping[str, Any]) -> str:
    return "holds" if gate["passed"] else "FAILED"


def table(report: Mapping[str, Any]) -> Any:
    """The report's rows as a rich table."""
    from rich.table import Table

    from smelt.compress.chain.figures import COLUMNS, cells

    made = Table(title=f"{report['source']}: the chain", title_justify="left", box=None, pad_edge=False)
    for i, (_, heading) in enumerate(COLUMNS):
        made.add_column(heading, justify="left" if i == 0 else "right")
    for row in [*report["rows"], *([report["control"]] if report["control"] else [])]:
        made.add_row(*cells(row))
    return made


class View:
    """What the user sees while it runs: lines, and on a terminal a bar that is drawn anew."""

    def __init__(self, put: Callable[[str], None], draw: Callable[[str, Progress], None] | None) -> None:
        self._put, self._draw = put, draw
        self._last = ("", 0.0)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._put(text)

    def stage(self, index: int, count: int, name: str, progress: Progress) -> None:
        """The newest progress of a stage; index -1: of what comes before the first."""
        words = name if index < 0 else f"{name} ({index + 1} of {max(count, index + 1)})"
        if self._draw is not None:
            self._draw(words, progress)
            return
        now = time.monotonic()
        if self._last[0] == words and now - self._last[1] < _PLAIN_EVERY_S and progress.done < progress.total:
            return
        self._last = (words, now)
        left = "" if progress.left_s is None else f", about {progress.left_s:,.0f} s left"
        self._put(f"{words}: {progress.done} of {progress.total} {progress.unit}{left}")


@contextmanager
def view() -> Iterator[View]:
    """A live bar on a terminal; elsewhere a line every ten seconds. Both on standard error."""
    if not sys.stderr.isatty():
        yield View(lambda text: print(text, file=sys.stderr, flush=True), None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None, left="")

        def draw(words: str, progress: Progress) -> None:
            left = "" if progress.left_s is None else f"{progress.unit}, {progress.left_s:,.0f} s left"
            bars.update(task, description=words, completed=progress.done, total=progress.total, left=left)

        yield View(lambda text: bars.console.print(text, markup=False, highlight=False), draw)
