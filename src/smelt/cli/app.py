"""The verbs and their options. Each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smelt.cli.data import data_app
from smelt.cli.evaluate import EvalOptions
from smelt.cli.export import ExportOptions, export_command
from smelt.cli.model_options import ModelOption, ThreadsOption, WeightsOption
from smelt.cli.options import takes
from smelt.cli.plan import PlanOptions, plan_command
from smelt.cli.record import RecordOptions, record_command
from smelt.cli.serve import ServeOptions, serve_command
from smelt.cli.shrink import ShrinkOptions, shrink_command
from smelt.cli.train import TrainOptions, train_command

app = typer.Typer(
    name="smelt",
    help="The GPT-4o mini you own: serve, use and measure a small language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data_app, name="data")

UrlOption = Annotated[str, typer.Option("--url", help="Talk to this OpenAI-compatible URL instead (…/v1).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]


@app.command()
@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve a model on an OpenAI-compatible API. Further settings: SMELT_* (docs/server.md)."""
    serve_command(options)


@app.command()
def chat(
    model: ModelOption = "spark",
    url: UrlOption = "",
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    temperature: Annotated[float, typer.Option(help="0 always gives the same answer.", min=0, max=2)] = 0.0,
) -> None:
    """Chat in the terminal, with a model folder or a URL. Ctrl-D ends."""
    from smelt.cli.chat import chat_command

    chat_command(model=model, url=url, system=system, temperature=temperature)


@app.command()
def run(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    model: ModelOption = "spark",
    url: UrlOption = "",
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    schema: Annotated[Path | None, typer.Option(help="Answer with JSON valid under this JSON Schema file.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens; 0: what the model allows.", min=0)] = 0,
    temperature: Annotated[float, typer.Option(help="0 always gives the same answer.", min=0, max=2)] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Answer one prompt and print what it took."""
    from smelt.cli.run import RunOptions, run_command

    options = RunOptions(system=system, schema=schema, max_tokens=max_tokens, temperature=temperature)
    run_command(prompt, options, model=model, url=url, as_json=as_json)


@app.command()
def tokens(
    source: Annotated[str, typer.Argument(help="Text; @FILE reads a file, - standard input.")],
    model: ModelOption = "spark",
    request: Annotated[bool, typer.Option("--request", help="The input is a chat request's JSON body.")] = False,
    encoding: Annotated[str, typer.Option(help="o200k_base or cl100k_base instead of the model's own.")] = "",
    ranks: Annotated[
        Path | None, typer.Option(help="The encoding's .tiktoken file.", exists=True, dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count the tokens of a text or of a whole chat request."""
    from smelt.cli.tokens import tokens_command

    tokens_command(source, model=model, request=request, encoding=encoding, ranks=ranks, as_json=as_json)


@app.command()
def bench(
    model: ModelOption = "spark",
    weights: WeightsOption = "w8",
    threads: ThreadsOption = 0,
    rounds: Annotated[int, typer.Option(help="Samples per figure; the median is shown.", min=1)] = 5,
    as_json: JsonOption = False,
) -> None:
    """Measure prefill, decode and batch speed on this machine."""
    from smelt.cli.bench import bench_command

    bench_command(model=model, weights=weights, threads=threads, rounds=rounds, as_json=as_json)


@app.command()
@takes(PlanOptions)
def plan(options: PlanOptions) -> None:
    """Say what a shape costs before it is made: parameters, bytes, operations, memory, predicted speed here."""
    plan_command(options)


@app.command()
@takes(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train by a recipe, from data to a finished folder. Called again with the same --out it goes on."""
    train_command(options)


@app.command()
@takes(ShrinkOptions)
def shrink(options: ShrinkOptions) -> None:
    """Make a model small by a chain of stages; report what each cost. Called again with the same --out it goes on."""
    shrink_command(options)


@app.command()
@takes(ExportOptions)
def export(options: ExportOptions) -> None:
    """Write a model in a form that other programs load, read it back with one of them, and compare."""
    export_command(options)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A model folder with a lineage, or a chain's folder.", exists=True)],
    as_json: JsonOption = False,
) -> None:
    """Hash every file again and say whether the folder still is what its lineage tells."""
    from smelt.cli.verify import verify_command

    verify_command(folder, as_json=as_json)


@app.command(name="eval")
@takes(EvalOptions)
def evaluate(options: EvalOptions) -> None:
    """Score a model: bits per byte, skills, public benchmarks, each with its interval. Asking again is a resume."""
    from smelt.cli.evaluate import evaluate_command

    evaluate_command(options)


@app.command()
@takes(RecordOptions)
def record(options: RecordOptions) -> None:
    """Pass requests on to an OpenAI-compatible URL and keep them, with their answers, as training data."""
    record_command(options)


@app.command()
def doctor(
    model: ModelOption = "spark",
    port: Annotated[int, typer.Option(help="Port to look at.", envvar="SMELT_PORT", min=0, max=65535)] = 8000,
    as_json: JsonOption = False,
) -> None:
    """Look at cores, quota, memory, instruction set, port and model, and say what is wrong."""
    from smelt.cli.doctor import doctor_command

    doctor_command(model=model, port=port, as_json=as_json)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """The GPT-4o mini you own: serve, use and measure a small language model."""
    if version:
        from smelt import __version__

        typer.echo(f"smelt {__version__}")
        raise typer.Exit
