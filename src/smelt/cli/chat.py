"""`smelt chat`: a conversation in the terminal."""

from __future__ import annotations

import sys

from smelt.core.errors import UserError
from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.generate.events import AnswerText, AnswerUsage


def chat_command(*, model: str, url: str, system: str, temperature: float) -> None:
    """Read a line, stream the answer, again until end of input. A refused turn is shown and forgotten."""
    from smelt.cli.source import open_source

    source = open_source(model, url)
    messages = [Message.of("system", system)] if system else []
    print("Type a message; an empty line or Ctrl-D ends.", file=sys.stderr)
    while question := _read_line():
        messages.append(Message.of("user", question))
        answer = ""
        try:
            request = ChatRequest(messages=tuple(messages), params=SamplingParams(temperature=temperature))
            for event in source.stream(request):
                if isinstance(event, AnswerText):
                    answer += event.text
                    print(event.text, end="", flush=True)
                elif isinstance(event, AnswerUsage):
                    spent = f"{event.usage.prompt_tokens} + {event.usage.completion_tokens} tokens"
                    print(f"\n  [{spent}]", file=sys.stderr)
        except UserError as error:
            print(f"refused: {error}", file=sys.stderr)
            messages.pop()
            continue
        messages.append(Message.of("assistant", answer))


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
