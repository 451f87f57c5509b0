"""What every test shares: no network beyond loopback, the sibling data folder, a tiny servable model folder."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tiny_folder

# Tiny models gain nothing from a second thread, and where cores are shared the pool's spinning costs tenfold.
# Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


class NetworkUseError(AssertionError):
    """A test tried to leave the machine."""


def _is_loopback(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Iterator[None]:
    """Connecting to, sending to or resolving anything but this machine fails the test."""
    patch = pytest.MonkeyPatch()
    resolve = socket.getaddrinfo

    def guarded(name: str) -> Any:
        original = getattr(socket.socket, name)

        def call(self: socket.socket, *args: Any) -> Any:
            address = args[-1]
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
                raise NetworkUseError(f"{name} to {address!r}: tests stay on loopback")
            return original(self, *args)

        return call

    def guarded_resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_loopback(host):
            raise NetworkUseError(f"looking up {host!r}: tests stay on loopback")
        return resolve(host, *args, **kwargs)

    for name in ("connect", "connect_ex", "sendto"):
        patch.setattr(socket.socket, name, guarded(name))
    patch.setattr(socket, "getaddrinfo", guarded_resolve)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder that may stand beside the repository; the test is skipped where it does not."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random house-shaped model with a trained tokenizer: servable, and nonsense. Do not write into it."""
    return make_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def served_folder(tiny_folder: Path) -> Path:
    """The shipped model where there is one, else the tiny random one."""
    from smelt.checkpoint.hub import SHIPPED

    return SHIPPED / "spark" if (SHIPPED / "spark" / "config.json").is_file() else tiny_folder


@pytest.fixture(scope="session")
def live_url(served_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process of `served_folder` on a free loopback port: its URL without /v1."""
    from tests.server.live import running

    with running(served_folder, tmp_path_factory.mktemp("served")) as server:
        yield server.base_url
