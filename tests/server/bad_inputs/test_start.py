"""Row 2 of reference/safety.md 5.2, and ports: servers that must not start."""

from __future__ import annotations

import socket
import subprocess

import pytest

from smelt.server.errors import StartError
from smelt.server.serve import bind
from smelt.server.settings import Settings
from tests.server.live import CLI, ROOT


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_wide_bind_without_a_key(host: str) -> None:
    """Row 2: exits with a status, and the message names the flag."""
    command = [*CLI, "serve", "--host", host, "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "--api-key" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port}.*--port"):
            bind(Settings(port=port))


def test_an_address_of_another_machine() -> None:
    with pytest.raises(StartError, match="cannot listen on 192.0.2.1"):
        bind(Settings(host="192.0.2.1", api_keys="secret-key"))


def test_ipv6_loopback() -> None:
    try:
        listener = bind(Settings(host="::1", port=0))
    except StartError:
        pytest.skip("this machine has no IPv6 loopback")
    with listener:
        assert listener.getsockname()[0] == "::1"
