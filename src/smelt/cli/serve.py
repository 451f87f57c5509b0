"""`smelt serve`: settings in, a running server out, and a first page for the person who started it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.cli.model_options import ModelOption, ThreadsOption, WeightsOption
from smelt.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from smelt.server.serve import Ready


_DEFAULT_URL = "http://127.0.0.1:8000/v1"
_OPTIONS = {
    "port": "--port",
    "weights": "--weights",
    "threads": "--threads",
    "api_keys": "--api-key",
    "store": "--store",
}


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What `smelt serve` is told; the rest is SMELT_*."""

    model: ModelOption = "spark"
    host: Annotated[
        str, typer.Option(help="Address to bind; beyond loopback needs --api-key.", envvar="SMELT_HOST")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port to bind.", envvar="SMELT_PORT")] = 8000
    api_key: Annotated[list[str] | None, typer.Option(help="Accept this key; repeat for more.")] = None
    alias: Annotated[list[str] | None, typer.Option(help="Also answer to this model name; repeat for more.")] = None
    weights: WeightsOption = "w8"
    threads: ThreadsOption = 0
    context: Annotated[
        int, typer.Option(help="Lower context limit in tokens; 0: the model's own.", envvar="SMELT_CONTEXT_LEN", min=0)
    ] = 0
    store: Annotated[
        str | None,
        typer.Option(
            help="Where answers asked for with `store: true` are kept: a file, a database URL, or none. "
            "Otherwise: the user's data folder.",
            envvar="SMELT_STORE",
        ),
    ] = None

    def fields(self) -> dict[str, Any]:
        """As fields of Settings, without those that were not given and have no default of their own."""
        chosen = {
            "host": self.host,
            "port": self.port,
            "model": self.model,
            "weights": self.weights,
            "threads": self.threads,
            "context_len": self.context,
        }
        if self.api_key:
            chosen["api_keys"] = tuple(self.api_key)
        if self.store is not None:
            chosen["store"] = self.store
        return chosen


def serve_command(options: ServeOptions) -> None:
    """Serve until interrupted."""
    from pydantic import ValidationError

    from smelt.server.serve import run
    from smelt.server.settings import Settings

    start = time.perf_counter()
    try:
        settings = Settings(**options.fields())
        if options.alias:
            settings = Settings(**{**settings.model_dump(), "aliases": (*settings.aliases, *options.alias)})
    except ValidationError as error:
        raise InvalidRequestError("; ".join(map(_plain, error.errors()))) from None

    def show(ready: Ready) -> None:
        print(first_page(ready, threads=settings.threads, seconds=time.perf_counter() - start), flush=True)

    run(settings, on_ready=show)


def _plain(error: Mapping[str, Any]) -> str:
    """What is wrong, after the name of the option or variable at fault."""
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    return f"{_OPTIONS.get(name, f'SMELT_{name.upper()}')}: {message}"


def first_page(ready: Ready, *, threads: int, seconds: float) -> str:
    """What was chosen and why, how to call it, what to try next."""
    from smelt import native
    from smelt.checkpoint import DEFAULT_MODEL

    llm, machine = ready.model, native.machine_report()
    num_threads = threads or machine.threads
    why = "as told" if threads else machine.reason.partition(": ")[2]
    limits = f"context {llm.context_len} tokens, longest answer {llm.max_output_len}"
    if not llm.can_chat:
        limits += "; no chat format, so /v1/completions only"
    moved = "" if ready.base_url == _DEFAULT_URL else f"OPENAI_BASE_URL={ready.base_url} "
    named = "" if DEFAULT_MODEL in ready.names else f" -m {shlex.quote(llm.name)}"
    chat = [f"{moved}python examples/tools.py", f"smelt chat --url {ready.base_url}{named}"] if llm.can_chat else []
    lines = [
        f"smelt serves {llm.name} at {ready.base_url} (ready in {seconds:.1f} s)",
        f"  model    {limits}; answers to {', '.join(ready.names)}",
        f"  machine  {machine.isa}, {num_threads} threads: {why}",
        f"  store    {ready.store}",
        "",
        *("  " + line for line in ready.snippet.splitlines()),
        "",
        "  next: " + "   ".join([*chat, f"curl {ready.base_url}/models", "Ctrl-C stops"]),
    ]
    return "\n".join(lines)
