"""Questions to an OpenAI-compatible URL, many at a time: retried with patience, counted, and paid for knowingly."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from smelt.core.errors import DataError, InvalidRequestError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
R = TypeVar("R")
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT_S = 60.0


@dataclass
class Spent:
    """What was asked so far. Prices are per million tokens, in whatever the URL's owner charges."""

    input_price: float = 0.0
    output_price: float = 0.0
    num_requests: int = 0
    num_retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, usage: Any) -> None:
        """Take in one answer's usage."""
        found = usage if isinstance(usage, dict) else {}
        with self._lock:
            self.num_requests += 1
            self.prompt_tokens += int(found.get("prompt_tokens") or 0)
            self.completion_tokens += int(found.get("completion_tokens") or 0)

    def retried(self) -> None:
        """One more attempt was needed."""
        with self._lock:
            self.num_retries += 1

    @property
    def cost(self) -> float:
        """At the prices given; 0 without."""
        return (self.prompt_tokens * self.input_price + self.completion_tokens * self.output_price) / 1e6

    def line(self) -> str:
        """For the terminal."""
        tokens = f"{self.prompt_tokens:,} tokens in, {self.completion_tokens:,} out"
        cost = f", cost {self.cost:.2f}" if self.input_price or self.output_price else ""
        return f"{self.num_requests} requests ({self.num_retries} retried), {tokens}{cost}"


class Asker:
    """POSTs to `base_url`, `each` at most `concurrency` at a time; what may pass later is tried up to `attempts` times.

    A client handed in (other transports, tests) is not closed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str = "none",
        concurrency: int = 8,
        attempts: int = 6,
        spent: Spent | None = None,
        client: httpx.Client | None = None,
    ) -> None:
        import httpx

        if concurrency < 1 or attempts < 1:
            raise InvalidRequestError("concurrency and attempts must be at least 1")
        self.base_url, self.model, self.concurrency = base_url.rstrip("/"), model, concurrency
        self.spent = spent or Spent()
        self._owns_client = client is None
        self._client = client or httpx.Client(timeout=httpx.Timeout(300, connect=15))
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._attempts = attempts
        self.sleep: Callable[[float], None] = time.sleep

    def close(self) -> None:
        """Give up the connections, unless the client was handed in."""
        if self._owns_client:
            self._client.close()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One answer. Raises InvalidRequestError for a refusal, DataError where no attempt brought an answer."""
        import httpx

        problem = ""
        for attempt in range(self._attempts):
            wait_s = min(_LONGEST_WAIT_S, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                reply = self._client.post(
                    self.base_url + path, json={"model": self.model, **body}, headers=self._headers
                )
            except httpx.TransportError as error:
                problem = type(error).__name__
            else:
                if reply.status_code == 200:
                    return self._read(reply)
                if reply.status_code not in _AGAIN:
                    raise InvalidRequestError(f"the teacher refused with {reply.status_code}: {reply.text[:300]}")
                problem = f"status {reply.status_code}"
                wait_s = max(wait_s, min(_LONGEST_WAIT_S, _seconds(reply.headers.get("retry-after", ""))))
            if attempt + 1 < self._attempts:
                self.spent.retried()
                self.sleep(wait_s)
        raise DataError(f"the teacher gave no answer in {self._attempts} attempts ({problem}); run again to go on")

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`work` of every item in order, `concurrency` at a time. The first error ends it; what waits is not begun."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                for future in futures:
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

    def _read(self, reply: httpx.Response) -> dict[str, Any]:
        try:
            value = reply.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DataError("the teacher's answer is not JSON")
        self.spent.add(value.get("usage"))
        return value


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:  # a date: the backoff is as good a guess
        return 0.0
