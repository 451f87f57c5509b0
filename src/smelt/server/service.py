"""What the routes share: the model under its names, admission, and the way from a request to its answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from smelt.core.errors import ContextLengthError, NotFoundError, OverloadedError
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.generate.completion import Event
from smelt.generate.events import AnswerUsage
from smelt.generate.prepare import Prepared
from smelt.server.body import parse_object, read_body
from smelt.server.errors import shown, timeout_error
from smelt.server.metrics import Metrics
from smelt.server.record import Record, record_of
from smelt.server.settings import ANY_MODEL, Settings
from smelt.server.storage import Storage
from smelt.server.streaming import EventStream, while_connected

T = TypeVar("T")
SHRINKAGE = 4  # some tokenizers normalise first; composing characters at most quarters the bytes
Events = AsyncGenerator[Event, None]


class Vocabulary(Protocol):
    """What the server needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids are 0 to vocab_size - 1."""
        ...

    @property
    def control_ids(self) -> Mapping[str, int]:
        """Ids that no text has."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        ...


class ServedModel(Protocol):
    """What the server needs of `generate.LLM`."""

    @property
    def tokenizer(self) -> Vocabulary:
        """Its tokenizer."""
        ...

    @property
    def name(self) -> str:
        """Its id on the API."""
        ...

    @property
    def created(self) -> int:
        """Seconds since 1970."""
        ...

    @property
    def can_chat(self) -> bool:
        """False for a base model, which only completes."""
        ...

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`."""
        ...

    @property
    def context_len(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    @property
    def max_output_len(self) -> int:
        """Most tokens of an answer."""
        ...

    def prepare(self, request: ChatRequest) -> Prepared:
        """See `generate.LLM.prepare`."""
        ...

    def prepare_completion(self, prompt: str | list[int], params: SamplingParams, *, echo: bool = False) -> Prepared:
        """See `generate.LLM.prepare_completion`."""
        ...

    def stream(self, prepared: Prepared, *, n: int = 1, tenant: str = "") -> Events:
        """See `generate.LLM.stream`."""
        ...

    def stats(self) -> Mapping[str, float]:
        """See `generate.LLM.stats`."""
        ...


class Service:
    """One model, its settings, its store and its counters; lives in `app.state.service`."""

    def __init__(self, llm: ServedModel, settings: Settings) -> None:
        self.llm = llm
        self.settings = settings
        self.metrics = Metrics(llm)
        self.storage = Storage(settings, self.metrics)
        self.bytes_per_token = _longest_token_len(llm.tokenizer)
        self.num_admitted = 0
        self.num_buffered_bytes = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Model ids a caller may use, the model's own first ("*" not among them)."""
        return tuple(dict.fromkeys((self.llm.name, *(a for a in self.settings.aliases if a != ANY_MODEL))))

    def resolve(self, name: str) -> ServedModel:
        """The model of this name. Raises NotFoundError."""
        if name in self.names or ANY_MODEL in self.settings.aliases:
            return self.llm
        raise no_such_model(name)

    def check_length(self, texts: Iterable[str], noun: str, also: str = "") -> None:
        """Refuse, before any tokenizing, a prompt that cannot fit: tokenizing 2 MB takes seconds and 350 MB.

        `texts` are what the prompt will hold at least: `noun`, and what else to shorten. Raises ContextLengthError.
        Counts as if every token were the longest one.
        """
        num_bytes = sum(len(text.encode()) for text in texts) // SHRINKAGE
        least = -(-num_bytes // self.bytes_per_token)
        if least > self.llm.context_len:
            raise ContextLengthError(
                f"This model's maximum context length is {self.llm.context_len} tokens. However, your {noun} resulted "
                f"in at least {least} tokens. Please reduce the length of the {noun}{also}.",
                param=noun,
            )

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Counts a request in, and out again on every way. Raises OverloadedError when the house is full."""
        if self.num_admitted >= self.settings.max_requests:
            raise OverloadedError(
                f"The server is working on {self.num_admitted} requests, which is as many as it takes; try again later."
            )
        self.num_admitted += 1
        self.metrics.admitted.set(self.num_admitted)
        try:
            yield
        finally:
            self.num_admitted -= 1
            self.metrics.admitted.set(self.num_admitted)

    @contextmanager
    def buffer(self) -> Iterator[Callable[[int], None]]:
        """Accounts for body bytes in memory; the function it gives adds some. Raises OverloadedError."""
        taken = 0

        def take(num_bytes: int) -> None:
            nonlocal taken
            if self.num_buffered_bytes + num_bytes > self.settings.max_buffered_bytes:
                raise OverloadedError("The server is reading as many large requests as it takes; try again later.")
            taken += num_bytes
            self.num_buffered_bytes += num_bytes

        try:
            yield take
        finally:
            self.num_buffered_bytes -= taken


def _longest_token_len(vocabulary: Vocabulary) -> int:
    """Bytes of the longest token that text can have."""
    controls = set(vocabulary.control_ids.values())
    return max(len(vocabulary.token_bytes(i)) for i in range(vocabulary.vocab_size) if i not in controls)


def no_such_model(name: str) -> NotFoundError:
    """404, in OpenAI's words."""
    return NotFoundError(
        f"The model `{shown(name)}` does not exist or you do not have access to it.", code="model_not_found"
    )


def service_of(request: Request) -> Service:
    """The application's service."""
    service: Service = request.app.state.service
    return service


class Answering:
    """One request on its way to an answer: admitted, under its deadline, watched for the client's departure.

    Use as a context manager. `stream` hands the admission on to the response it makes.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.service = service_of(request)
        self.record = record_of(request.scope)
        self._stack = ExitStack()
        self._deadline_s = asyncio.get_running_loop().time() + self.service.settings.request_timeout_s

    def __enter__(self) -> Answering:
        self._stack.enter_context(self.service.admission())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self._deadline_s - asyncio.get_running_loop().time()

    async def read(self, prepare: Callable[[dict[str, Any]], T]) -> T:
        """The body, parsed and prepared in a thread."""
        with self.service.buffer() as take:
            body = await read_body(self.request, self.service.settings, take)
            self.record.body_hash = hashlib.sha256(body).hexdigest()[:16]
            return await self.run(asyncio.to_thread(lambda: prepare(parse_object(body))))

    async def run(self, work: Awaitable[T]) -> T:
        """`work`, unless the client leaves or the deadline passes first."""
        try:
            async with asyncio.timeout_at(self._deadline_s):
                return await while_connected(self.request.receive, work)
        except TimeoutError:
            raise timeout_error("The request", self.service.settings.request_timeout_s) from None

    async def stream(self, events: Events, chunks: Callable[[Events], AsyncGenerator[bytes, None]]) -> EventStream:
        """The events as a response. Waits for the first one: until then a failure still has a status of its own."""
        try:
            first = await self.run(anext(events))
        except BaseException:
            await events.aclose()
            raise
        rest = self._stack.pop_all()
        return EventStream(
            chunks(_resumed(first, events)), self.service.settings, deadline_s=self._deadline_s, on_end=rest.close
        )


async def metered(events: Events, record: Record) -> Events:
    """The same events; the record learns of the first one and of the usage."""
    async with aclosing(events):
        async for part in events:
            if record.first_event_s is None:
                record.first_event_s = record.elapsed_s
            if isinstance(part, AnswerUsage):
                record.usage = part.usage
            yield part


async def _resumed(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    async with aclosing(rest):
        yield first
        async for item in rest:
            yield item
