"""`smelt record`: a proxy that keeps the traffic as training data, once its user has said that it may."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from smelt.core.errors import InvalidRequestError

CONSENT = """recording writes what people send and what they are answered into a file on this machine, in clear text.
  kept      messages, tools, answers, token counts, sampling settings
  not kept  request headers (your API key is passed on and never written), `user` and `metadata` fields
  masked    API keys, bearer tokens, passwords in known shapes; e-mails and card numbers with --mask emails,cards
  not found secrets without a known shape: names, addresses, health, whatever people write about
Record only traffic whose authors have agreed to it, and only where the upstream's terms allow training on its answers.
If that is so, run the command again with --consent."""


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """The command's options."""

    upstream: Annotated[str, typer.Option(help="OpenAI-compatible base URL to pass requests to (…/v1).")]
    out: Annotated[Path, typer.Option(help="JSONL file to append to; completions go to NAME.completions.jsonl.")]
    consent: Annotated[
        bool, typer.Option("--consent", help="Yes: the people whose traffic this is agreed to its being kept.")
    ] = False
    mask: Annotated[str, typer.Option(help="Also mask these, by comma: emails, cards.")] = ""
    sample: Annotated[float, typer.Option(help="Share of requests to record; all are passed on.")] = 1.0
    rotate_mib: Annotated[int, typer.Option("--rotate-mib", help="Begin a new file at this size.", min=1)] = 256
    host: Annotated[str, typer.Option(help="Address to bind.", envvar="SMELT_HOST")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port to bind.", min=0, max=65535)] = 8100
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines: the address, then the counts.")] = False


def record_command(options: RecordOptions) -> None:
    """Record until interrupted, then say what was kept and what was not."""
    if not options.consent:
        raise InvalidRequestError(CONSENT)
    from smelt.server.recorder.run import RecordSettings, run

    settings = RecordSettings(
        upstream=options.upstream,
        out=options.out,
        host=options.host,
        port=options.port,
        sample=options.sample,
        rotate_mib=options.rotate_mib,
        mask=tuple(name.strip() for name in options.mask.split(",") if name.strip()),
    )

    def show(base_url: str) -> None:
        if options.as_json:
            print(json.dumps({"base_url": base_url, "upstream": options.upstream, "out": str(options.out)}), flush=True)
            return
        share = "" if options.sample == 1.0 else f" ({options.sample:.0%} of it)"
        print(
            f"smelt records at {base_url}, in front of {options.upstream}\n"
            f"  kept     traffic{share} in clear text in {options.out}; keys and tokens masked\n"
            f'  clients  OpenAI(base_url="{base_url}")   Ctrl-C ends',
            flush=True,
        )

    found = run(settings, on_ready=show)
    if options.as_json:
        print(json.dumps({"lines": dict(found.num_lines), "left_out": dict(found.left_out)}), flush=True)
        return
    left = ", ".join(f"{count} {reason}" for reason, count in sorted(found.left_out.items())) or "none"
    print(f"recorded {sum(found.num_lines.values())} conversations; left out: {left}", flush=True)
