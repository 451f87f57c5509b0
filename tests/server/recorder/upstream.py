"""An upstream server that does as it is told and remembers what reached it, and a recorder process before it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.server.live import CLI, ROOT, Server


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Script(BaseHTTPRequestHandler):
    """Calls the server's `answer` with this handler; it writes what it wants."""

    protocol_version = "HTTP/1.1"
    server: Upstream

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Seen(self.command, self.path, headers, body))
        self.server.answer(self)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815 - the library's names

    def log_message(self, *_: Any) -> None:
        pass

    def whole(self, body: bytes, status: int = 200, **headers: str) -> None:
        """One answer with its length."""
        self.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in {**fields, **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        """The headers of a stream without length."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def piece(self, data: bytes) -> None:
        """One piece of it; empty ends it."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def vanish(self) -> None:
        """Go away in the middle."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


class Upstream(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Script)
        self.seen: list[Seen] = []
        self.answer: Callable[[Script], None] = lambda script: script.whole(b"{}")

    def handle_error(self, *_: Any) -> None:
        """A client that left is what some tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextlib.contextmanager
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Recorder(Server):
    """A running `smelt record`."""

    out: Path = field(default_factory=Path)
    first: dict[str, Any] = field(default_factory=dict)

    def finish(self) -> dict[str, Any]:
        """Interrupt it; its last line."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=20)
        return json.loads(rest.splitlines()[-1])

    def lines(self) -> list[dict[str, Any]]:
        """What has been written."""
        return [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.is_file() else []


@contextlib.contextmanager
def recording(url: str, tmp: Path, *options: str) -> Iterator[Recorder]:
    """`smelt record` before `url`, on a free port."""
    out, log = tmp / "traffic.jsonl", tmp / "record.log"
    command = [*CLI, "record", "--upstream", url, "--out", str(out), "--port", "0", "--json", *options]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | {"NO_PROXY": "*"}
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"did not start: {log.read_text()}"
        first = json.loads(line)
        port = int(first["base_url"].rpartition(":")[2].partition("/")[0])
        yield Recorder(process, port, log, out=out, first=first)
    finally:
        process.kill()
        process.communicate(timeout=10)
