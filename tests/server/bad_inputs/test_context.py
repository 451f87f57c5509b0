"""Row 34 of reference/safety.md 5.2: prompts at the edge of the context window."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.live import Server

CONTEXT = 1024  # of the tiny folder
ID = 40
TOOLS = [{"type": "function", "function": {"name": "f", "description": "Does it.", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("num_tokens", "max_tokens", "echo", "status"),
    [
        (CONTEXT - 1, 1, False, 200),
        (CONTEXT - 1, 2, False, 400),
        (CONTEXT, 1, False, 400),
        (CONTEXT, 0, True, 200),
        (CONTEXT + 1, 0, True, 400),
        (CONTEXT + 1, 1, False, 400),
    ],
)
def test_completions(live: Server, num_tokens: int, max_tokens: int, echo: bool, status: int, stream: bool) -> None:
    reply = live.complete(prompt=[ID] * num_tokens, max_tokens=max_tokens, echo=echo, stream=stream)
    assert reply.status == status, reply.body
    if status == 400:
        assert (reply.error["code"], reply.error["param"]) == ("context_length_exceeded", "prompt")
        assert str(CONTEXT) in reply.error["message"]
        assert str(num_tokens) in reply.error["message"]


def _prompt_len(server: Server, **fields: Any) -> int:
    return int(json.loads(server.chat(**fields, max_tokens=1).body)["usage"]["prompt_tokens"])


@pytest.mark.parametrize("more", [{}, {"tools": TOOLS}], ids=["plain", "with tools"])
def test_chat(live: Server, more: dict[str, Any], stream: bool) -> None:
    """`~` is one token and merges with nothing, so a text of any number of tokens can be written."""

    def messages(num: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": "~" * num}]

    frame = _prompt_len(live, messages=messages(10), **more) - 10
    assert _prompt_len(live, messages=messages(11), **more) == frame + 11
    room = CONTEXT - frame
    for num, max_tokens, status in ((room - 1, 1, 200), (room - 1, 2, 400), (room, 1, 400), (room + 1, 1, 400)):
        reply = live.chat(messages=messages(num), max_tokens=max_tokens, stream=stream, **more)
        assert reply.status == status, reply.body
        if status == 400:
            assert (reply.error["code"], reply.error["param"]) == ("context_length_exceeded", "messages")
            assert ("in the functions" in reply.error["message"]) == bool(more)
    unlimited = live.chat(messages=messages(room - 2), max_tokens=None, stream=stream, **more)
    assert unlimited.status == 200


def test_more_output_than_the_model_gives(live: Server) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        reply = live.chat(**{"max_tokens": None, field: 5_000})
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_value", field)
        assert reply.error["message"].startswith("max_tokens is too large: 5000.")
