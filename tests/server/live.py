"""A server in a process of its own, and raw ways to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from smelt.tokenizer import Tokenizer
from tests.server.conftest import CHAT
from tests.tiny import tiny_tokenizer_files

ROOT = Path(__file__).resolve().parents[2]
# Biases that keep a tiny random model from ending its answer after a few tokens.
NEVER_END = {
    str(i): -100 for i in Tokenizer.from_json(tiny_tokenizer_files()[0]["tokenizer.json"].decode()).control_ids.values()
}
CLI = (sys.executable, "-c", "from smelt.cli import main; main()")  # the `smelt` command


@dataclass
class Reply:
    """An answer as it came over the socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


@dataclass
class Server:
    """A running server. `log` is its standard error."""

    process: subprocess.Popen[str]
    port: int
    log: Path
    key: str | None = None
    opened: list[socket.socket] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout_s: float = 30) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def send(self, raw: bytes, *, timeout_s: float = 30) -> Reply:
        """Send bytes as they are and read one reply."""
        with self.connect(timeout_s) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may answer before reading all
                connection.sendall(raw)
            return read_reply(connection)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, **options: Any
    ) -> Reply:
        """One request on a connection of its own."""
        fields = {"Host": f"127.0.0.1:{self.port}", "Connection": "close"}
        if self.key:
            fields["Authorization"] = f"Bearer {self.key}"
        if body:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        fields |= headers or {}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body, **options)

    def post(self, path: str, value: Any, **options: Any) -> Reply:
        """POST a JSON value, or bytes as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", path, body, **options)

    def chat(self, **fields: Any) -> Reply:
        """The smallest chat request, with `fields` in it."""
        return self.post("/v1/chat/completions", CHAT | {"max_tokens": 4} | fields)

    def complete(self, **fields: Any) -> Reply:
        """The smallest completion request, with `fields` in it."""
        return self.post("/v1/completions", {"model": "gpt-4o-mini", "prompt": "Once", "max_tokens": 4} | fields)

    def metrics(self) -> dict[str, float]:
        """The numbers of /metrics."""
        lines = self.request("GET", "/metrics").body.decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def metric(self, name: str) -> float:
        """One number of /metrics."""
        return self.metrics()[name]

    def wait_idle(self, within_s: float = 1.0) -> None:
        """Fail unless the engine is empty, blocks and all, `within_s` from now."""
        names = ("smelt_requests_running", "smelt_requests_waiting", "smelt_kv_cache_usage", "smelt_requests_admitted")
        deadline = time.monotonic() + within_s
        while True:
            found = self.metrics()
            left = {name: found[name] for name in names if found[name]}
            if not left:
                return
            assert time.monotonic() < deadline, f"still busy after {within_s} s: {left}"
            time.sleep(0.02)

    @property
    def cpu_s(self) -> float:
        """Processor time the server has used: unlike the clock, it does not grow with the machine's other work."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


def read_reply(connection: socket.socket) -> Reply:
    """Read until the reply's Content-Length is there or the other side closes."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {data[:100]!r}")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "-1"))
    while length < 0 or len(body) < length:
        piece = connection.recv(65536)
        if not piece:
            break
        body += piece
    return Reply(int(first.split()[1]), headers, body)


@contextlib.contextmanager
def running(model: Path, tmp: Path, *, small: bool = True, **environment: str) -> Iterator[Server]:
    """A server of `model` on a free port, its store in `tmp`; settings as SMELT_* fields. small: see `live_main`."""
    log = tmp / "server.log"
    settings = {
        f"SMELT_{name.upper()}": value for name, value in {"store": str(tmp / "store.db"), **environment}.items()
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("SMELT_")} | settings
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.live_main", str(model), *(["--small"] if small else [])],
            cwd=ROOT,
            env=env | {"SMELT_PORT": "0", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://"), f"did not start: {line}{log.read_text()}"
        key = environment.get("api_keys", "").partition(",")[0] or None
        yield Server(process, int(line.rpartition(":")[2].partition("/")[0]), log, key)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        if process.stdout is not None:
            process.stdout.close()
