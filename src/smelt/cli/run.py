"""`smelt run`: one prompt, one answer, and what it took."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message, ResponseFormat
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import FinishReason, SamplingParams, Usage
from smelt.generate.events import AnswerEnd, AnswerText, AnswerUsage


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How to answer. schema: a JSON Schema file the answer must be valid under. max_tokens 0: the model's own limit."""

    system: str = ""
    schema: Path | None = None
    max_tokens: int = 0
    temperature: float = 0.0


def run_command(prompt: str, options: RunOptions, *, model: str, url: str, as_json: bool) -> None:
    """Print the answer as it comes, then tokens and seconds on standard error; or one JSON object."""
    from smelt.cli.source import open_source

    text = sys.stdin.read() if prompt == "-" else prompt
    messages = (Message.of("system", options.system),) if options.system else ()
    request = ChatRequest(
        messages=(*messages, Message.of("user", text)),
        response_format=_response_format(options.schema),
        params=SamplingParams(temperature=options.temperature, max_tokens=options.max_tokens or None),
    )
    start = time.perf_counter()
    answer, reason, usage = "", FinishReason.STOP, Usage(0, 0)
    for event in open_source(model, url).stream(request):
        if isinstance(event, AnswerText):
            answer += event.text
            if not as_json:
                print(event.text, end="", flush=True)
        elif isinstance(event, AnswerEnd):
            reason = event.reason
        elif isinstance(event, AnswerUsage):
            usage = event.usage
    seconds = time.perf_counter() - start
    if as_json:
        print(json.dumps(_result(answer, reason, usage, seconds)))
        return
    print()
    cut = ", cut at the token limit" if reason is FinishReason.LENGTH else ""
    spent = f"{usage.prompt_tokens} prompt + {usage.completion_tokens} answer tokens, {seconds:.2f} s{cut}"
    print(spent, file=sys.stderr)


def _result(answer: str, reason: FinishReason, usage: Usage, seconds: float) -> dict[str, Any]:
    return {
        "text": answer,
        "finish_reason": str(reason),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "seconds": round(seconds, 4),
    }


def _response_format(path: Path | None) -> ResponseFormat:
    if path is None:
        return ResponseFormat()
    try:
        schema = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"--schema {path}: not a readable JSON file ({error})") from error
    return ResponseFormat(kind="json_schema", name=path.stem, schema=schema)
