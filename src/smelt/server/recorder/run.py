"""From settings to a running recorder: what `smelt record` calls."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from smelt.server.errors import StartError
from smelt.server.recorder.exchange import Exchange, UnusableError, lines
from smelt.server.recorder.masking import OPTIONS, Masker
from smelt.server.recorder.proxy import Proxy
from smelt.server.recorder.writer import Background, LineWriter
from smelt.server.serve import AnnouncingServer, bind, uvicorn_config
from smelt.server.settings import Settings

log = logging.getLogger("smelt.recorder")
_MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """upstream: base URL. out: the JSONL file; completions go beside it, to <stem>.completions<suffix>.

    sample: share of requests recorded. rotate_mib: size at which a new file begins. mask: of masking.OPTIONS.
    Raises StartError for what cannot be.
    """

    upstream: str
    out: Path
    host: str = "127.0.0.1"
    port: int = 8100
    sample: float = 1.0
    rotate_mib: int = 256
    mask: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = urlsplit(self.upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StartError(f"--upstream {self.upstream}: sought a URL such as http://127.0.0.1:8000/v1")
        if parts.username or parts.query:
            raise StartError("--upstream: sought a URL without login and query; clients send their own keys")
        if not 0.0 < self.sample <= 1.0:
            raise StartError(f"--sample {self.sample:g}: sought above 0 and up to 1")
        if unknown := [name for name in self.mask if name not in OPTIONS]:
            raise StartError(f"--mask {unknown[0]}: sought {' or '.join(OPTIONS)}")


@dataclass
class Recording:
    """What has been recorded so far. num_lines: by file kind; left_out: by reason."""

    num_lines: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


class Keeper:
    """Turns exchanges into lines and writes them, in a thread of its own."""

    def __init__(self, settings: RecordSettings) -> None:
        self.found = Recording()
        self._masker = Masker(settings.mask)
        self._settings = settings
        self._lock = threading.Lock()
        self._writers = {"chat": LineWriter(settings.out, settings.rotate_mib * _MEBIBYTE)}
        self._background = Background(self._keep, self.found.left_out)

    def keep(self, exchange: Exchange) -> None:
        """Take an exchange; returns at once."""
        self._background.put(exchange)

    def leave_out(self, reason: str) -> None:
        """Count one that is not kept."""
        with self._lock:
            self.found.left_out[reason] += 1

    def close(self) -> None:
        """Write what is waiting, then close the files."""
        self._background.close()
        for writer in self._writers.values():
            writer.close()

    def _keep(self, exchange: Exchange) -> None:
        try:
            for line in lines(exchange, self._masker):
                self._writer(exchange.kind).write(line)
                self.found.num_lines[exchange.kind] += 1
        except UnusableError as error:
            self.leave_out(str(error))
        except OSError as error:
            log.warning("cannot write: %s", error.strerror or error)
            self.leave_out("disk full or not writable")
        except Exception:  # an answer of a shape nobody thought of must not end the recording
            log.exception("an exchange could not be read")
            self.leave_out("unreadable answer")

    def _writer(self, kind: str) -> LineWriter:
        if kind not in self._writers:  # the second file only where it is needed
            out = self._settings.out
            path = out.with_name(f"{out.stem}.completions{out.suffix}")
            self._writers[kind] = LineWriter(path, self._settings.rotate_mib * _MEBIBYTE)
        return self._writers[kind]


def run(settings: RecordSettings, *, on_ready: Callable[[str], None]) -> Recording:
    """Record until SIGINT or SIGTERM; `on_ready` gets the base URL for clients once requests are taken.

    Raises StartError where the address cannot be bound or the file cannot be written.
    """
    server_settings = Settings.model_construct(host=settings.host, port=settings.port)
    with contextlib.closing(bind(server_settings)) as listener, contextlib.closing(Keeper(settings)) as keeper:
        bound = server_settings.model_copy(update={"port": listener.getsockname()[1]})
        app = Proxy(settings.upstream, bound, keep=keeper.keep, leave_out=keeper.leave_out, sample=settings.sample)
        config = uvicorn_config(app, bound, lifespan="on", date_header=False)
        server = AnnouncingServer(config, lambda: on_ready(f"{bound.url}/v1"))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return keeper.found
