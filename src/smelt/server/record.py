"""What is remembered of one request while it runs: for its log line, its headers and the metrics."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

from starlette.types import Scope

from smelt.core.sampling import Usage
from smelt.server.errors import shown

SCOPE_KEY = "smelt.record"


@dataclass(slots=True)
class Record:
    """One request. Times are monotonic seconds.

    `body_hash` stands for its content and `tenant` for its key, neither of which is ever logged; requests of two
    tenants share no cached prefix.
    """

    method: str
    path: str
    client: str = ""
    request_id: str = field(default_factory=lambda: f"req_{token_hex(16)}")
    started_s: float = field(default_factory=time.monotonic)
    first_event_s: float | None = None
    status: int = 0
    model: str = ""
    stream: bool = False
    body_hash: str = ""
    tenant: str = ""
    usage: Usage | None = None
    error_code: str = ""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request's headers were read."""
        return time.monotonic() - self.started_s

    def log_line(self) -> str:
        """One line of JSON, all ASCII: nothing a caller sends can end the line or move a terminal's cursor."""
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": self.request_id,
            "client": self.client,
            "method": shown(self.method, 16),
            "path": shown(self.path, 128),
            "status": self.status,
            "ms": round(self.elapsed_s * 1000),
        }
        optional = {
            "key": self.tenant,
            "model": self.model,
            "stream": self.stream,
            "body": self.body_hash,
            "error": self.error_code,
        }
        fields |= {name: value for name, value in optional.items() if value}
        if self.usage is not None:
            fields["prompt_tokens"] = self.usage.prompt_tokens
            fields["cached_tokens"] = self.usage.cached_tokens
            fields["completion_tokens"] = self.usage.completion_tokens
        return json.dumps(fields)


def record_of(scope: Scope) -> Record:
    """The request's record; the outermost middleware made it."""
    record: Record = scope[SCOPE_KEY]
    return record
