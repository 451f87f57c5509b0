"""What a server may be told, from arguments or the environment (`SMELT_*`), checked once and frozen."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from smelt.store.location import default_path, locate

Names = Annotated[tuple[str, ...], NoDecode]
Keys = Annotated[tuple[SecretStr, ...], NoDecode]
ANY_MODEL = "*"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether binding `host` is reachable from this machine only. A wildcard (0.0.0.0, ::) is not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """One server's settings. Lists in the environment are separated by commas.

    model: a folder, a Hugging Face id, or a shipped model's name. aliases: names the model also answers to;
    "*" is every name. context_len, max_output_len: lower limits than the model's own, in tokens; kv_mib: memory for
    keys and values; 0 leaves each to `generate.options`. max_running: answers computed at a time. allowed_hosts,
    allowed_origins: Host and Origin values accepted beside the loopback ones ("*": any). max_requests: admitted at
    once, running and waiting; the next one gets 429. store: a file, a database URL, or "none"; store_max_mib: what a
    file may grow to; store_days: how long an answer is kept; 0 of either: no limit. max_buffered_bytes: all bodies
    being read or parsed together.
    All `_bytes`, `_s` and `max_` fields are upper limits.
    """

    model_config = SettingsConfigDict(env_prefix="SMELT_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    model: str = "spark"
    weights: Literal["w8", "fp32"] = "w8"
    threads: int = Field(default=0, ge=0)
    context_len: int = Field(default=0, ge=0)
    max_output_len: int = Field(default=0, ge=0)
    kv_mib: int = Field(default=0, ge=0)
    max_running: int = Field(default=16, ge=1, le=256)
    store: str = Field(default_factory=lambda: str(default_path()))
    store_max_mib: int = Field(default=1024, ge=0)
    store_days: int = Field(default=0, ge=0)
    api_keys: Keys = ()
    aliases: Names = ("gpt-4o-mini", "gpt-4o-mini-2024-07-18")
    allowed_hosts: Names = ()
    allowed_origins: Names = ()
    max_body_bytes: int = Field(default=20 * 2**20, ge=1024)
    max_buffered_bytes: int = Field(default=128 * 2**20, ge=1024)
    max_header_bytes: int = Field(default=32 * 2**10, ge=1024)
    max_headers: int = Field(default=100, ge=8)
    max_connections: int = Field(default=900, ge=1)
    max_requests: int = Field(default=256, ge=1)
    max_n: int = Field(default=128, ge=1, le=128)
    max_messages: int = Field(default=2048, ge=1)
    max_tools: int = Field(default=128, ge=0, le=128)
    max_prompts: int = Field(default=2048, ge=1)
    header_timeout_s: float = Field(default=10, gt=0)
    body_timeout_s: float = Field(default=30, gt=0)
    request_timeout_s: float = Field(default=600, gt=0)
    send_timeout_s: float = Field(default=30, gt=0)
    keep_alive_s: int = Field(default=30, gt=0)
    shutdown_timeout_s: int = Field(default=5, ge=0)

    @field_validator("api_keys", "aliases", "allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("store")
    @classmethod
    def _usable_store(cls, store: str) -> str:
        locate(store)
        return store

    @field_validator("api_keys")
    @classmethod
    def _usable_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if not (8 <= len(text) <= 512 and text.isascii() and text.isprintable() and " " not in text):
                raise ValueError("an API key is 8 to 512 printable ASCII characters without spaces")
        return keys

    @model_validator(mode="after")
    def _guarded(self) -> Settings:
        if not self.api_keys and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} can be reached from other machines, so it needs a key: "
                "add --api-key KEY (or SMELT_API_KEYS), or bind 127.0.0.1"
            )
        return self

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    @property
    def host_names(self) -> frozenset[str] | None:
        """Host header values accepted (lower case, without port); None: any."""
        if ANY_MODEL in self.allowed_hosts or not (is_loopback(self.host) or self.allowed_hosts):
            return None
        return frozenset(name.lower() for name in (*LOOPBACK_NAMES, self.host, *self.allowed_hosts))
