"""`smelt train`: a recipe from data to a finished folder, with its curve in the terminal while it runs."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.core.errors import InvalidRequestError, TrainingStoppedError

if TYPE_CHECKING:
    from smelt.train.report import Report

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `smelt train` is told."""

    recipe: Annotated[Path | None, typer.Argument(help="A recipe's Python file, as recipes/spark.py.")] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder everything is made in; called again with it, a run goes on.")
    ] = None
    data: Annotated[Path | None, typer.Option(help="Folder of data, where the recipe takes any.")] = None
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: key=value; repeat.")] = None
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe's own run of seconds.")] = False
    store: Annotated[
        str | None,
        typer.Option(
            help="Where the curve is kept too: a file, a database URL, or none. Otherwise: the user's data folder.",
            envvar="SMELT_STORE",
        ),
    ] = None
    runs: Annotated[bool, typer.Option("--runs", help="List the runs in the store instead, the newest first.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; progress on standard error.")] = False


def train_command(options: TrainOptions) -> None:
    """Run the recipe, or go on with it; prints the folder it made, or one JSON object. With `runs`, list runs."""
    from smelt.cli.runs import located, runs_command

    if options.runs:
        runs_command(options.store, as_json=options.as_json)
        return
    if options.recipe is None or options.out is None:
        raise InvalidRequestError("sought a recipe and --out: smelt train recipes/spark.py --out DIR (or --runs)")
    located(options.store)  # a name that cannot be one is said before anything is made
    _train(options, options.recipe, options.out)


def _train(options: TrainOptions, path: Path, out: Path) -> None:
    from smelt.cli.runs import recorded
    from smelt.train.distributed import joined
    from smelt.train.hardware import pick_device
    from smelt.train.recipe import Workshop, load_recipe, with_settings

    recipe = load_recipe(path)
    settings = with_settings(recipe.smoke if options.smoke else recipe.settings, options.changes or [])
    stopping = threading.Event()
    with joined(pick_device("auto")) as world, stops(stopping), _view(world.writes, options.as_json) as view:
        if world.writes:
            _note(out, path, settings)
        try:
            with recorded(options.store if world.writes else "none", out, path.name, asdict(settings)) as recorder:

                def show(report: Report) -> None:
                    view.show(report)
                    if recorder is not None:
                        recorder.show(report)

                shop = Workshop(
                    out=out, data=options.data, on_report=show, say=view.say, stopping=stopping, world=world
                )
                made = recipe.make(settings, shop)
        except TrainingStoppedError as error:
            print(f"smelt: {error}", file=sys.stderr)
            sys.exit(130)
    if world.writes:
        _finish(made, view.last, as_json=options.as_json)


def _note(out: Path, path: Path, settings: Any) -> None:
    """What was asked for, beside what comes of it."""
    out.mkdir(parents=True, exist_ok=True)
    asked = {"recipe": path.name, "settings": asdict(settings)}
    (out / "settings.json").write_text(json.dumps(asked, indent=1, default=str) + "\n")


def _finish(made: Path, last: Report | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"made": str(made), "last_report": None if last is None else asdict(last)}))
        return
    if last is not None:
        spent = f"{last.step} steps, {last.num_tokens / 1e6:.2f}M tokens, {last.elapsed_s / 60:.1f} min"
        print(f"loss {last.loss:.4f} after {spent}")
    print(made)


@contextmanager
def stops(stopping: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run after the step under way, with a checkpoint; a second one at once.

    Processes forked from this one (they prepare data) inherit the handlers: Ctrl-C, which a terminal sends to them too,
    leaves them at work for the step under way; SIGTERM is how they are told to end.
    """
    owner = os.getpid()

    def ask(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        print("smelt: stopping after this step; once more stops at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class View:
    """What the user sees of a run: lines, or (`Live`) a picture that is drawn anew."""

    def __init__(self, put: Callable[[str], None], draw: Callable[[str], None] | None) -> None:
        self._put, self._draw = put, draw
        self._losses: list[float] = []
        self.last: Report | None = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self._put(text)

    def show(self, report: Report) -> None:
        """The newest report."""
        from smelt.train.report import line

        self.last = report
        self._losses.append(report.loss)
        if self._draw is None:
            self._put(line(report))
        else:
            self._draw(picture(report, self._losses))


@contextmanager
def _view(writes: bool, as_json: bool) -> Iterator[View]:
    """A live picture on a terminal, else plain lines: on standard error where the output is JSON. One process shows."""
    if not writes:
        yield View(lambda text: None, None)
        return
    if as_json or not sys.stdout.isatty():
        yield View(lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True), None)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        yield View(
            lambda text: live.console.print(text, markup=False, highlight=False),
            lambda text: live.update(Text(text), refresh=True),
        )


def picture(report: Report, losses: Sequence[float], *, width: int = 64, height: int = 8) -> str:
    """The curve so far and what a person waits to know."""
    from smelt.train.report import line

    share = report.step / max(1, report.total_steps) if report.left_s >= 0 else 0.0
    bar = "█" * round(share * width)
    lines = plot(losses, width=width, height=height)
    low, high = min(losses), max(losses)
    lines[0] += f"  {high:.3f}"
    lines[-1] += f"  {low:.3f}"
    return "\n".join([*lines, f"{bar:░<{width}}  {share:.0%}", line(report)])


def plot(values: Sequence[float], *, width: int, height: int) -> list[str]:
    """Bars from the smallest value (an eighth of a row) to the largest (full height), the newest on the right.

    More values than columns are averaged.
    """
    columns = min(width, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    eighths = [1 + round((value - low) / span * (8 * height - 1)) for value in means]
    rows = []
    for row in reversed(range(height)):
        filled = (max(0, min(8, e - 8 * row)) for e in eighths)
        rows.append("".join(_BARS[n - 1] if n else " " for n in filled).ljust(width))
    return rows
