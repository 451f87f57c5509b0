"""Rows 1, 3, 4, 25, 36 of reference/safety.md 5.2: who may ask, from where, for what."""

from __future__ import annotations

import json
import statistics
import time

import pytest

from tests.server.bad_inputs.conftest import KEY
from tests.server.live import Server

PATHS = [
    "/",
    "/v1/models",
    "//v1/models",
    "/V1/models",
    "/v1/models/",
    "/v1/chat/completions",
    "/v1/%2e%2e/metrics",
    "/v1/../health",
    "/health/",
    "/HEALTH",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/debug/pprof",
    "/no/such/route",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "TRACE"])
@pytest.mark.parametrize("path", PATHS)
def test_nothing_opens_without_a_key(keyed: Server, method: str, path: str) -> None:
    """Row 1: the guard stands before the router, so no spelling of a path gets around it."""
    reply = keyed.request(method, path, headers={"Authorization": ""})
    assert reply.status == 401
    if method != "HEAD":
        assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", PATHS[2:4] + PATHS[6:10] + PATHS[11:])
def test_with_a_key_they_are_404(keyed: Server, path: str) -> None:
    assert keyed.request("GET", path).status == 404


WRONG = {
    "wrong": "Bearer sk-test-9999999999",
    "prefix": f"Bearer {KEY[:-1]}",
    "longer": f"Bearer {KEY}0",
    "empty": "Bearer ",
    "other scheme": f"Basic {KEY}",
    "no scheme": KEY,
    "two keys": f"Bearer {KEY},{KEY}",
    "16 KB": "Bearer " + "k" * 16_384,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_keys(keyed: Server, name: str) -> None:
    """Row 3."""
    reply = keyed.request("GET", "/v1/models", headers={"Authorization": WRONG[name]})
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert KEY[:8] not in reply.error["message"]
    assert reply.headers["www-authenticate"] == "Bearer"


def test_a_megabyte_of_key_is_refused_as_a_header(keyed: Server) -> None:
    """Row 3: it is over the header limit before it is a key."""
    assert keyed.request("GET", "/v1/models", headers={"Authorization": "Bearer " + "k" * 2**20}).status == 431


def test_two_authorization_headers(keyed: Server) -> None:
    """Row 3: which of the two counts would depend on who reads them."""
    raw = (
        f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{keyed.port}\r\nConnection: close\r\n"
        f"Authorization: Bearer {KEY}\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    )
    assert keyed.send(raw.encode()).status == 401


def test_key_in_the_query(keyed: Server) -> None:
    """Row 3: queries end up in logs."""
    for query in (f"api_key={KEY}", f"key={KEY}", f"access_token={KEY}"):
        assert keyed.request("GET", f"/v1/models?{query}", headers={"Authorization": ""}).status == 401
    assert KEY not in keyed.log.read_text()


def test_both_keys_open(keyed: Server) -> None:
    for key in (KEY, "second-key-0123"):
        assert keyed.request("GET", "/v1/models", headers={"Authorization": f"bearer {key}"}).status == 200


def test_time_does_not_tell_a_prefix(keyed: Server) -> None:
    """Row 3. The comparison is over digests; this only catches a gross difference (medians over 60 tries)."""

    def seconds(key: str) -> float:
        start = time.perf_counter()
        keyed.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return time.perf_counter() - start

    pairs = [(seconds("x" * len(KEY)), seconds(KEY[:-1] + "x")) for _ in range(60)]
    far, near = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert abs(far - near) < 0.005


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost@evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://app.example.evil"},
    ],
    ids=str,
)
def test_foreign_pages_are_kept_out(live: Server, keyed: Server, headers: dict[str, str]) -> None:
    """Row 4: a page that rebinds its name to 127.0.0.1, or simply posts there."""
    for server in (live, keyed):
        reply = server.request("GET", "/v1/models", headers=headers)
        assert reply.status == 403
        assert reply.error["code"] in {"host_not_allowed", "origin_not_allowed"}
        assert "access-control-allow-origin" not in reply.headers


def test_listed_host_and_origin(keyed: Server) -> None:
    """Row 4: "unless listed"; the page may then read errors too."""
    headers = {"Host": "models.example:80", "Origin": "https://app.example"}
    reply = keyed.request("GET", "/v1/models", headers=headers)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "https://app.example")
    refused = keyed.request("GET", "/v1/models", headers=headers | {"Authorization": "Bearer wrong"})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
    asks = headers | {"Access-Control-Request-Method": "POST", "Authorization": ""}
    assert keyed.request("OPTIONS", "/v1/chat/completions", headers=asks).status == 204


def test_own_pages_may_ask(live: Server) -> None:
    assert live.request("GET", "/health", headers={"Origin": live.base_url}).status == 200


MODELS = ["../../etc/passwd", "/etc/passwd", "http://127.0.0.1/x", "ft:gpt-4o-mini:someone::id", "x" * 10_240, "", "*"]


@pytest.mark.parametrize("name", MODELS, ids=lambda name: name[:24] or "empty")
def test_model_names_are_looked_up_and_nothing_else(live: Server, name: str, stream: bool) -> None:
    """Row 25."""
    for reply in (live.chat(model=name, stream=stream), live.complete(model=name, stream=stream)):
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert len(reply.body) < 400
    if name:
        quoted = name.replace("/", "%2F")
        assert live.request("GET", f"/v1/models/{quoted}").status == 404


def test_health_says_one_word(live: Server, keyed: Server) -> None:
    """Row 36."""
    for server in (live, keyed):
        reply = server.request("GET", "/health", headers={"Authorization": ""})
        assert (reply.status, json.loads(reply.body)) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/debug", "/debug/pprof", "/profile", "/env"])
def test_no_other_windows(live: Server, path: str) -> None:
    """Row 36."""
    assert live.request("GET", path).status == 404
