"""`smelt data`: build a corpus out of public or own text, look at its numbers, read from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from smelt.data.corpus.build import OnProgress

data_app = typer.Typer(no_args_is_help=True, help="Turn raw text into a clean, documented corpus for pretraining.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
FolderArgument = Annotated[Path, typer.Argument(help="A corpus made by `smelt data build`.")]
_PLAIN_EVERY_S = 10.0


@data_app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder to make; called again, a build goes on where it was.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of public data (text/, eval/).", envvar="SMELT_DATA")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="A source's name, or name=PATH,language=en,licence=... of your own; repeat. None: all found."
        ),
    ] = None,
    limit_chars: Annotated[int, typer.Option(help="Read so many characters of each source; 0: all.", min=0)] = 0,
    processes: Annotated[int, typer.Option(help="Worker processes; the result does not depend on them.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Filter, mask, decontaminate, de-duplicate and shard text; prints what was dropped and why."""
    from smelt.data.corpus.build import build_corpus
    from smelt.data.corpus.plan import Settings

    settings = Settings(data=data, wanted=tuple(source or ()), limit_chars=limit_chars or None, processes=processes)
    if data is None and not as_json:
        print("no --data: nothing is compared with evaluation sets", file=sys.stderr)
    with _progress() as on_progress:
        manifest = build_corpus(out, settings, on_progress)
    _show(out, manifest, as_json=as_json)


@data_app.command()
def stats(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Documents and bytes by source, split and language, licences, and the drop table."""
    from smelt.data.corpus.shards import manifest_of

    _show(folder, manifest_of(folder), as_json=as_json)


@data_app.command()
def sample(
    folder: FolderArgument,
    source: Annotated[str, typer.Option(help="Only of this source.")] = "",
    num: Annotated[int, typer.Option("-n", help="How many documents.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, other documents.")] = 0,
    valid: Annotated[bool, typer.Option("--valid", help="Of the held-out part instead of the training part.")] = False,
    chars: Annotated[int, typer.Option(help="Show so many characters of each; 0: all.", min=0)] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines with the whole texts.")] = False,
) -> None:
    """Print some documents, drawn evenly over all."""
    from smelt.data.corpus.shards import line_of, sample_documents

    for document in sample_documents(folder, num, seed, split="valid" if valid else "train", source=source or None):
        if as_json:
            print(line_of(document))
            continue
        text = document.text if not chars or len(document.text) <= chars else document.text[:chars] + " […]"
        print(f"--- {document.source} {document.language} {document.key} ({document.num_bytes:,} bytes)\n{text}\n")


def _show(folder: Path, manifest: Mapping[str, Any], *, as_json: bool) -> None:
    from smelt.data.corpus.report import drop_rows, language_rows, source_rows

    drops = json.loads((folder / "drops.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps({key: manifest[key] for key in manifest if key != "plan"} | {"drops": drops}))
        return
    _table("Sources", "source|licence|>read|>MB|>kept|>train MB|>valid MB|masked", source_rows(manifest))
    _table("Languages", "language|split|>documents|>MB|>characters", language_rows(manifest))
    _table("Dropped", "source|rule|>documents|>kB|for example (hash)", drop_rows(drops))


def _table(title: str, columns: str, rows: list[tuple[str, ...]]) -> None:
    """`columns` are divided by bars; one that begins with > stands on the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns.split("|"):
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table, "")


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A live bar in a terminal; elsewhere a line every ten seconds and at each stage. Both on standard error."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=1.0, rate="")
        rate = _Rate()

        def show(stage: str, source: str, done: float, num_bytes: int, num_documents: int) -> None:
            if fresh := rate.begin(stage, source):
                bars.reset(task, total=1.0)
            words = f"{stage} {source}".strip()
            said = "" if fresh else f"{rate.mb_per_s(num_bytes):.2f} MB/s, {num_documents:,} texts"
            bars.update(task, description=words, completed=done, rate=said)

        yield lambda at: show(at.stage, at.source, at.done, at.num_bytes, at.num_documents)


class _Rate:
    """Speed and time left of one source in one stage."""

    def __init__(self) -> None:
        self._at: tuple[str, str] = ("", "")
        self._start_s, self._start_bytes = 0.0, 0
        self._last_bytes = 0

    def begin(self, stage: str, source: str) -> bool:
        """Whether another stage or source has begun."""
        import time

        if (stage, source) == self._at:
            return False
        kept = self._last_bytes if stage == self._at[0] else 0
        self._at, self._start_s, self._start_bytes = (stage, source), time.monotonic(), kept
        return True

    @property
    def elapsed_s(self) -> float:
        """Since the source began."""
        import time

        return max(1e-3, time.monotonic() - self._start_s)

    def mb_per_s(self, num_bytes: int) -> float:
        """Since the source began, given the stage's count so far."""
        self._last_bytes = num_bytes
        return (num_bytes - self._start_bytes) / 1e6 / self.elapsed_s


def _plain_lines() -> OnProgress:
    rate, last = _Rate(), [-_PLAIN_EVERY_S]

    def show(stage: str, source: str, done: float, num_bytes: int, num_documents: int) -> None:
        fresh = rate.begin(stage, source)
        speed = rate.mb_per_s(num_bytes)
        if fresh:
            print(f"{stage} {source}".strip(), file=sys.stderr, flush=True)
            last[0] = 0.0
        elif rate.elapsed_s - last[0] >= _PLAIN_EVERY_S or done >= 1:
            last[0] = rate.elapsed_s
            left_s = rate.elapsed_s * (1 - done) / done if done else 0.0
            words = f"{stage} {source} {100 * done:.0f} %, {num_documents:,} texts, {speed:.2f} MB/s"
            print(f"{words}, about {left_s:.0f} s left", file=sys.stderr, flush=True)

    return lambda at: show(at.stage, at.source, at.done, at.num_bytes, at.num_documents)
