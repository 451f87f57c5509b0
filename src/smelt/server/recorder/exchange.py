"""One request and its answer as lines of a data set: OpenAI's chat fine-tuning format, and prompts with completions.

    {"messages": [..., {"role": "assistant", ...}], "tools": [...], "parallel_tool_calls": true, "metadata": {...}}
    {"prompt": "...", "completion": "...", "metadata": {...}}

`metadata` is the side field: model, time, usage, finish reason, sampling settings, log-probabilities where they were
asked for, and how many secrets were masked. What a client says about its user (`user`, `metadata`) is not kept.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from smelt.server.recorder.masking import Masker

Kind = Literal["chat", "completion"]
_KEPT_SETTINGS = (
    "temperature top_p seed stop max_tokens max_completion_tokens presence_penalty frequency_penalty response_format "
    "tool_choice reasoning_effort"
).split()


class UnusableError(Exception):
    """An exchange that cannot become a line; the message is a short word for the count of those left out."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Bytes as they went by, and what is needed to read them. encoding: the answer's Content-Encoding."""

    kind: Kind
    request: bytes
    response: bytes
    encoding: str
    content_type: str
    secrets: tuple[str, ...] = ()


def lines(exchange: Exchange, masker: Masker) -> list[dict[str, Any]]:
    """A line a choice, masked. Raises UnusableError for what is no complete answer to a request we can read."""
    asked = _object(exchange.request, "unreadable request")
    raw = _decoded(exchange)
    if "text/event-stream" in exchange.content_type:
        answer = assembled(raw, exchange.kind)
    else:
        answer = _object(raw, "unreadable answer")
    make = _chat_line if exchange.kind == "chat" else _completion_line
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise UnusableError("no choices")
    found = []
    for choice in choices:
        line = make(asked, answer, choice)
        line["metadata"] = {**_about(asked, answer, choice), **line["metadata"]}
        found.append(_masked(line, masker, exchange.secrets))
    return found


def _masked(line: dict[str, Any], masker: Masker, secrets: tuple[str, ...]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    logprobs = line["metadata"].pop("logprobs", None)
    masked: dict[str, Any] = masker.mask(line, counts, secrets)
    if counts:
        masked["metadata"]["masked"] = dict(counts)
    elif logprobs:  # token by token they would spell out what was masked
        masked["metadata"]["logprobs"] = logprobs
    return masked


def _decoded(exchange: Exchange) -> bytes:
    headers = {"content-encoding": exchange.encoding} if exchange.encoding else {}
    try:
        raw = httpx.Response(200, headers=headers, content=exchange.response).content
    except httpx.DecodingError:
        raise UnusableError("unknown encoding") from None
    return raw


def _object(raw: bytes, problem: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UnusableError(problem)
    return value


def _chat_line(asked: dict[str, Any], _: dict[str, Any], choice: Any) -> dict[str, Any]:
    said = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(asked.get("messages"), list) or not isinstance(said, dict):
        raise UnusableError("no messages")
    reply: dict[str, Any] = {"role": "assistant", "content": said.get("content")}
    about: dict[str, Any] = {}
    if said.get("content") is None and said.get("refusal"):
        reply["content"], about["refusal"] = said["refusal"], True
    if said.get("tool_calls"):
        reply["tool_calls"] = [_call(call) for call in said["tool_calls"]]
    if reply["content"] is None and "tool_calls" not in reply:
        raise UnusableError("empty answer")
    line = {"messages": [*(_turn(message) for message in asked["messages"]), reply]}
    for name in ("tools", "parallel_tool_calls"):
        if name in asked:
            line[name] = asked[name]
    return {**line, "metadata": about}


def _turn(message: Any) -> Any:
    """A turn of the history. Clients send back whole answers, with fields (annotations, audio) that no file has."""
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return message
    kept = {name: message[name] for name in ("role", "content", "name", "refusal") if message.get(name) is not None}
    if message.get("tool_calls"):
        kept["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return kept


def _call(call: Any) -> Any:
    return {"id": call.get("id"), "type": "function", "function": call.get("function")} if _is_call(call) else call


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and call.get("type", "function") == "function"


def _completion_line(asked: dict[str, Any], _: dict[str, Any], choice: Any) -> dict[str, Any]:
    prompt, text = asked.get("prompt"), choice.get("text") if isinstance(choice, dict) else None
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not isinstance(text, str) or not text:
        raise UnusableError("no prompt text")  # several prompts, or ids, which mean nothing without their tokenizer
    if asked.get("echo"):
        text = text.removeprefix(prompt)
    return {"prompt": prompt, "completion": text, "metadata": {}}


def _about(asked: dict[str, Any], answer: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    reason = choice.get("finish_reason")
    if reason is None:
        raise UnusableError("unfinished answer")
    about = {
        "recorded_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": answer.get("model"),
        "finish_reason": reason,
        "choice": choice.get("index", 0),
        "usage": answer.get("usage"),
        "settings": {name: asked[name] for name in _KEPT_SETTINGS if asked.get(name) is not None},
    }
    if choice.get("logprobs"):
        about["logprobs"] = choice["logprobs"]
    return {name: value for name, value in about.items() if value is not None}


def assembled(raw: bytes, kind: Kind) -> dict[str, Any]:
    """A stream's events put together to the object that would have been the answer.

    Raises UnusableError where the stream reported an error or stopped before its last event.
    """
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    ended = False
    for data in events(raw):
        if data == "[DONE]":
            ended = True
            continue
        chunk = _object(data.encode(), "unreadable event")
        if "error" in chunk:
            raise UnusableError("error while streaming")
        answer |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name) is not None}
        for part in chunk.get("choices") or ():
            choice = choices.setdefault(
                part.get("index", 0), {"index": part.get("index", 0), "message": {}, "text": ""}
            )
            _add(choice, part, kind)
    if not ended:
        raise UnusableError("unfinished answer")
    return {**answer, "choices": [choices[index] for index in sorted(choices)]}


def events(raw: bytes) -> Iterator[str]:
    """The data of every server-sent event (lines of one event joined, as the specification says)."""
    held: list[str] = []
    for line in raw.decode("utf-8", "replace").replace("\r\n", "\n").split("\n"):
        if line.startswith("data:"):
            held.append(line[5:].removeprefix(" "))
        elif not line and held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def _add(choice: dict[str, Any], part: dict[str, Any], kind: Kind) -> None:
    if part.get("finish_reason") is not None:
        choice["finish_reason"] = part["finish_reason"]
    for name, entries in (part.get("logprobs") or {}).items():
        if isinstance(entries, list):
            choice.setdefault("logprobs", {}).setdefault(name, []).extend(entries)
    if kind == "completion":
        choice["text"] += part.get("text") or ""
        return
    message, delta = choice["message"], part.get("delta") or {}
    for name in ("content", "refusal"):
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    for call in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", [])
        while len(calls) <= call.get("index", 0):
            calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
        known, function = calls[call.get("index", 0)], call.get("function") or {}
        known["id"] = call.get("id") or known["id"]
        for name in ("name", "arguments"):
            known["function"][name] += function.get(name) or ""
