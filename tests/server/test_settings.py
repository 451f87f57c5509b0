"""Settings refuse what would be unsafe, and read lists from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from smelt.server.serve import load_model
from smelt.server.settings import Settings, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert Settings(host=host).api_keys == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.168.1.5", "example.org", "0", "localhost.evil.example"])
def test_wider_bind_without_a_key_names_the_flag(host: str) -> None:
    with pytest.raises(ValidationError, match="--api-key"):
        Settings(host=host)
    assert Settings(host=host, api_keys="secret-key").host_names is None


def test_lists_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMELT_ALIASES", "a, b,,c")
    monkeypatch.setenv("SMELT_API_KEYS", "first-key,second-key")
    monkeypatch.setenv("SMELT_MAX_N", "3")
    settings = Settings()
    assert settings.aliases == ("a", "b", "c")
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key", "second-key"]
    assert settings.max_n == 3
    assert "first-key" not in repr(settings)


@pytest.mark.parametrize("key", ["short", "has a space", "x" * 513, "schlüssel-key"])
def test_unusable_keys_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="printable ASCII"):
        Settings(api_keys=(key,))


def test_unknown_and_changed_settings_are_errors() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Settings(hots="127.0.0.1")
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000"), ("::", "http://[::1]:8000")],
)
def test_url_is_one_a_client_here_can_use(host: str, url: str) -> None:
    assert Settings(host=host, api_keys="secret-key").url == url


def test_limits_reach_the_model(tiny_folder: Path) -> None:
    """A setting that is accepted has its effect: the loaded model has the lower limits."""
    settings = Settings(model=str(tiny_folder), context_len=128, max_output_len=32, kv_mib=1, max_running=2, threads=1)
    llm = load_model(settings)
    try:
        assert (llm.context_len, llm.max_output_len) == (128, 32)
        assert llm.options.max_running == 2
        assert llm.options.kv_bytes == 1 << 20
    finally:
        llm.close()


def test_the_store_is_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Settings().store == str(tmp_path / "smelt/store.db")
    monkeypatch.setenv("SMELT_STORE", "none")
    assert Settings().store == "none"
    assert Settings(store="other.db").store == "other.db"


def test_a_store_that_cannot_be_is_refused_at_start() -> None:
    with pytest.raises(ValidationError, match="no store at mysql://…"):
        Settings(store="mysql://user:secret@host/db")
