"""`smelt serve`: settings in, a running server out, and a first page for the person who started it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smelt.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from smelt.server.serve import Ready


_DEFAULT_URL = "http://127.0.0.1:8000/v1"
_OPTIONS = {"port": "--port", "weights": "--weights", "threads": "--threads", "api_keys": "--api-key"}


def serve_command(chosen: dict[str, Any], *, api_keys: list[str], aliases: list[str]) -> None:
    """Serve until interrupted. `chosen` are Settings fields given on the command line; the rest is SMELT_*."""
    from pydantic import ValidationError

    from smelt.server.serve import run
    from smelt.server.settings import Settings

    start = time.perf_counter()
    try:
        if api_keys:
            chosen = {**chosen, "api_keys": tuple(api_keys)}
        settings = Settings(**chosen)
        if aliases:
            settings = Settings(**{**settings.model_dump(), "aliases": (*settings.aliases, *aliases)})
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
        "",
        *("  " + line for line in ready.snippet.splitlines()),
        "",
        "  next: " + "   ".join([*chat, f"curl {ready.base_url}/models", "Ctrl-C stops"]),
    ]
    return "\n".join(lines)
