"""A text teacher: any OpenAI-compatible URL answers our prompts, and its answers become training data.

Sequence-level distillation (Kim and Rush 2016) for teachers with another vocabulary; where log-probabilities are to be
had they are kept beside the answers (`url.RecordedScorer`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smelt.core.errors import DataError, InvalidRequestError
from smelt.train.teachers.asking import Asker


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are drawn. top_logprobs: alternatives a token (0: none; OpenAI's API gives at most 20).

    samples: answers to each prompt, with seeds 0, 1, ...
    """

    temperature: float = 1.0
    max_tokens: int = 1024
    top_logprobs: int = 0
    samples: int = 1


@dataclass(frozen=True, kw_only=True)
class AskReport:
    """Progress: answers there, of how many; seconds left at the rate of this call; what it cost so far."""

    num_done: int
    num_total: int
    answers_per_s: float
    left_s: float
    spent: str


def print_report(report: AskReport) -> None:
    """A plain line on the terminal."""
    rate = f"{report.answers_per_s:.1f} answers/s, {report.left_s / 60:.1f} min left"
    print(f"asked {report.num_done}/{report.num_total}, {rate}; {report.spent}", flush=True)  # noqa: T201


def ask(
    asker: Asker,
    prompts: Path,
    out: Path,
    settings: AnswerSettings = AnswerSettings(),
    on_report: Callable[[AskReport], None] = print_report,
) -> int:
    """Have every prompt of a chat JSONL answered, into another; returns how many answers the file then holds.

    A prompt is a line's `messages`, without a last assistant turn, and its `tools`. Answers there already are not
    asked again, so that a killed call goes on. Answers the API refuses to give (4xx) are left out and told.
    Raises DataError for prompts that cannot be read, or where the URL stays silent.
    """
    wanted = [(body, n) for body in _prompts(prompts) for n in range(settings.samples)]
    have = _answered(out)
    missing = [(body, n) for body, n in wanted if _key(asker, body, settings, n) not in have]
    done = len(wanted) - len(missing)
    began = time.monotonic()
    with out.open("ab") as file:
        for asked, line in enumerate(asker.each(lambda one: _answer(asker, one[0], settings, one[1]), missing), 1):
            if line is not None:
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
                file.flush()
                os.fsync(file.fileno())
                done += 1
            rate = asked / max(1e-9, time.monotonic() - began)
            if asked % 10 == 0 or asked == len(missing):
                report = AskReport(
                    num_done=done,
                    num_total=len(wanted),
                    answers_per_s=rate,
                    left_s=(len(missing) - asked) / rate,
                    spent=asker.spent.line(),
                )
                on_report(report)
    return done


def _prompts(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: cannot be read as text") from error
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
            messages = value["messages"]
            if messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            if not messages:
                raise ValueError("no prompt")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"{path.name}: line {number}, messages: sought a conversation to answer") from error
        yield {"messages": messages, **({"tools": value["tools"]} if value.get("tools") else {})}


def _key(asker: Asker, body: dict[str, Any], settings: AnswerSettings, sample: int) -> str:
    how = [asker.model, body, settings.temperature, settings.max_tokens, settings.top_logprobs, sample]
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:24]


def _answered(out: Path) -> set[str]:
    """Keys of the answers in the file; the beginning of a line that a kill cut off is removed."""
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        return set()
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(out, len(whole))
    try:
        return {str(json.loads(line)["metadata"]["prompt"]) for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out.name}: holds other lines than answers of this kind; choose another file") from error


def _answer(asker: Asker, body: dict[str, Any], settings: AnswerSettings, sample: int) -> dict[str, Any] | None:
    request = {**body, "temperature": settings.temperature, "max_completion_tokens": settings.max_tokens}
    if settings.samples > 1:
        request["seed"] = sample
    if settings.top_logprobs:
        request |= {"logprobs": True, "top_logprobs": settings.top_logprobs}
    try:
        answer = asker.post("/chat/completions", request)
        choice = answer["choices"][0]
        said = choice["message"]
    except InvalidRequestError:
        return None
    except (KeyError, IndexError, TypeError) as error:
        raise DataError("the teacher's answer is no chat completion") from error
    reply = {"role": "assistant", "content": said.get("content")}
    if said.get("tool_calls"):
        reply["tool_calls"] = said["tool_calls"]
    about = {
        "prompt": _key(asker, body, settings, sample),
        "model": answer.get("model"),
        "finish_reason": choice.get("finish_reason"),
        "usage": answer.get("usage"),
        **({"logprobs": choice["logprobs"]} if choice.get("logprobs") else {}),
    }
    line = {"messages": [*body["messages"], reply], "metadata": about}
    return {**line, "tools": body["tools"]} if "tools" in body else line
