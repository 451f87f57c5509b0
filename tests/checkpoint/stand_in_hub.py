"""A model hub on loopback: the few requests that huggingface_hub's snapshot_download makes, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandInHub:
    """Repositories by id, each a mapping of path to content.

    cut_once: path -> bytes after which the connection closes, the first time. failing: paths answered with 500.
    requests: (method, path, Range header) of everything asked.
    """

    repos: dict[str, dict[str, bytes]]
    cut_once: dict[str, int] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> list[str]:
        """Files whose content was asked for, in order."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> StandInHub:
        return self.server.hub  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `hub.requests` instead."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:])
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), "/".join(parts[4:]), with_body=with_body)
        else:
            self._send(404, b"")

    def _api(self, repo_id: str, rest: list[str]) -> None:
        files = self.hub.repos.get(repo_id)
        if files is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()]
            self._send(200, json.dumps(tree).encode())
        elif rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [{"rfilename": path} for path in files]
            self._send(200, json.dumps({"id": repo_id, "sha": COMMIT, "siblings": siblings}).encode())

    def _file(self, repo_id: str, path: str, *, with_body: bool) -> None:
        data = self.hub.repos.get(repo_id, {}).get(path)
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if path in self.hub.failing and with_body:
            return self._send(500, b"")
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not with_body:
            return self._send(200, b"", headers | {"Content-Length": str(len(data))})
        status, body = 200, data
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            status, body = 206, data[start:]
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(status, body, headers, cut_at=self.hub.cut_once.pop(path, None))

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut_at: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut_at])
        if cut_at is not None:
            self.close_connection = True


@contextmanager
def serving(hub: StandInHub) -> Iterator[StandInHub]:
    """Serve `hub` on a free loopback port; `hub.url` is the endpoint."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
