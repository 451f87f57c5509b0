"""From settings to a running server: what `smelt serve` calls. Prints nothing; tells a callback."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import uvicorn

from smelt.server.app import create_app
from smelt.server.errors import StartError
from smelt.server.protocol import connection_class
from smelt.server.service import ServedModel
from smelt.server.settings import Settings
from smelt.store.location import NOWHERE, locate

if TYPE_CHECKING:
    from smelt.generate.llm import LLM

BACKLOG = 512
_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BLOCK_BYTES = 2**20
_M_ARENA_MAX = -8
_NUM_ARENAS = 2


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A server that answers. base_url is what a client is given; snippet three lines of Python that use it.

    store: where answers are kept when that is asked for, in words.
    """

    base_url: str
    model: ServedModel
    names: tuple[str, ...]
    needs_key: bool
    store: str = NOWHERE

    @property
    def snippet(self) -> str:
        """A first call with the official client: a chat, or a completion where the model has no chat format."""
        key = "YOUR_KEY" if self.needs_key else "none"
        name = self.names[min(1, len(self.names) - 1)]
        call = (
            f'chat.completions.create(model="{name}", messages=[{{"role": "user", "content": "Hello!"}}])'
            ".choices[0].message.content"
            if self.model.can_chat
            else f'completions.create(model="{name}", prompt="Once upon a time").choices[0].text'
        )
        return (
            "from openai import OpenAI\n"
            f'client = OpenAI(base_url="{self.base_url}", api_key="{key}")\n'
            f"print(client.{call})"
        )


def load_model(settings: Settings) -> LLM:
    """The model the settings name. Raises CheckpointError. Fetches it first where it is a Hugging Face id."""
    from smelt.generate.llm import LLM
    from smelt.generate.options import MEBIBYTE, LLMOptions

    options = LLMOptions(
        weights=settings.weights,
        threads=settings.threads or None,
        context_len=settings.context_len or None,
        max_output_len=settings.max_output_len or None,
        kv_bytes=settings.kv_mib * MEBIBYTE or None,
        max_running=settings.max_running,
    )
    return LLM.open(settings.model, options=options)


def run(settings: Settings, *, on_ready: Callable[[Ready], None], load: Callable[[Settings], LLM] = load_model) -> None:
    """Bind, load, serve until SIGINT or SIGTERM. `on_ready` is called once, when requests are answered.

    Raises StartError when the address cannot be bound and CheckpointError when the model cannot be loaded.
    """
    _configure_logging()
    _return_large_blocks()
    with contextlib.closing(bind(settings)) as listener, contextlib.closing(load(settings)) as llm:
        port = listener.getsockname()[1]
        bound = settings.model_copy(update={"port": port})
        app = create_app(llm, bound)
        names = app.state.service.names
        needs_key, store = bool(settings.api_keys), _store(settings)
        ready = Ready(base_url=f"{bound.url}/v1", model=llm, names=names, needs_key=needs_key, store=store)
        server = AnnouncingServer(uvicorn_config(app, bound), lambda: on_ready(ready))
        interrupted = contextlib.suppress(KeyboardInterrupt)  # uvicorn raises the signal again when it has shut down
        with contextlib.closing(app.state.service.storage), interrupted:
            server.run(sockets=[listener])


def _store(settings: Settings) -> str:
    found = locate(settings.store)
    return "none: no answer is kept" if found is None else f"{found}, for answers asked with store: true"


class AnnouncingServer(uvicorn.Server):
    """uvicorn, with a call once requests are answered."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then say so."""
        await super().startup(sockets)
        self._on_started()


def bind(settings: Settings) -> socket.socket:
    """A listening address. Raises StartError with what to do about it."""
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, settings.port))
        listener.listen(BACKLOG)  # at once, so that a second server finds the port taken while this one loads
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror or error}): "
            "stop the program that uses it, or choose another with --port"
        ) from None
    return listener


def uvicorn_config(
    app: object, settings: Settings, *, lifespan: Literal["on", "off"] = "off", date_header: bool = True
) -> uvicorn.Config:
    """How every listener of ours speaks HTTP. date_header: False where the application passes another server's on."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn spells the type of an ASGI application its own way
        http=connection_class(settings),
        ws="none",
        loop="asyncio",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=date_header,
        proxy_headers=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=settings.max_header_bytes,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )


def _return_large_blocks() -> None:
    """Have glibc give memory back to the system when it is freed. No other C library needs this.

    Its size limit for doing so grows with each large block freed (up to 32 MB), after which the copies of one
    20 MB body, 86 MB by measurement, stay with the process for good; setting the limit also fixes it. And each
    thread that prepares requests would keep a heap of its own.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        libc.mallopt(_M_ARENA_MAX, _NUM_ARENAS)


class _OneLine(logging.Formatter):
    """Escapes line breaks and control characters, tracebacks included: one record, one line."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", " | ")
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _configure_logging() -> None:
    """Requests at INFO, everything else from WARNING up, to standard error, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    for name in ("smelt", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    logging.getLogger("smelt").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
