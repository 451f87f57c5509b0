"""Kept replies: an append-only file of JSON lines, keyed by content, so that asking again is a resume.

The key is a hash of the model's fingerprint and of what was asked. A line is written whole by one call when its reply
is there; a process killed in between loses at most the line under way, which the next reader skips.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from smelt.core.messages import Message, ToolCall
from smelt.core.sampling import Usage
from smelt.evals.cases import Question, Reply, identity

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A reply with the time it took. began: seconds since 1970."""

    reply: Reply
    began: float
    seconds: float

    @classmethod
    def of(cls, reply: Reply, began: float, seconds: float) -> Self:
        """With times as precise as they are stored: a run tells what a rerun from its store will."""
        return cls(reply=reply, began=round(began, 3), seconds=round(seconds, 4))


def key_of(fingerprint: str, question: Question) -> str:
    """Hex sha256 of model and question."""
    return hashlib.sha256(f"{FORMAT}\n{fingerprint}\n{identity(question)}".encode("utf-8", "surrogatepass")).hexdigest()


class Store:
    """Replies of one model. `path` is made with its folder when the first reply is kept; None keeps them in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept: dict[str, Kept] = {}
        self._descriptor: int | None = None
        if path is not None and path.is_file():
            for line in path.read_bytes().split(b"\n"):
                self._read(line)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Kept | None:
        """The kept reply, if there is one."""
        return self._kept.get(key)

    def put(self, key: str, question: Question, kept: Kept) -> None:
        """Keep a reply, at once and for good; from any thread."""
        row = {"key": key, "suite": question.suite, "language": question.language, "began": kept.began}
        row |= {"seconds": kept.seconds, **_reply_json(kept.reply)}
        line = json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._kept[key] = kept
            if self._path is not None:
                os.write(self._open(self._path), line)

    def close(self) -> None:
        """Close the file. Idempotent; a later `put` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self, path: Path) -> int:
        if self._descriptor is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if torn:
                os.write(self._descriptor, b"\n")
        return self._descriptor

    def _read(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            self._kept[row["key"]] = Kept(reply=_reply_of(row), began=row["began"], seconds=row["seconds"])
        except (ValueError, KeyError, TypeError):
            return  # a line cut by a kill: asked again


def _reply_json(reply: Reply) -> dict[str, Any]:
    row: dict[str, Any] = {"usage": [reply.usage.prompt_tokens, reply.usage.completion_tokens]}
    if reply.message is not None:
        row["text"] = reply.message.text
        row["calls"] = [dataclasses.asdict(call) for call in reply.message.tool_calls]
        row["finish_reason"] = reply.finish_reason
    if reply.scores:
        row["scores"] = reply.scores
    if reply.refused:
        row["refused"] = reply.refused
    return row


def _reply_of(row: dict[str, Any]) -> Reply:
    message = None
    if "text" in row:
        calls = tuple(ToolCall(**call) for call in row["calls"])
        text = row["text"]
        message = Message.of("assistant", text, tool_calls=calls) if text else Message("assistant", tool_calls=calls)
    return Reply(
        message=message,
        finish_reason=row.get("finish_reason", ""),
        scores=tuple((nats, num_bytes) for nats, num_bytes in row.get("scores", ())),
        usage=Usage(*row["usage"]),
        refused=row.get("refused", ""),
    )
