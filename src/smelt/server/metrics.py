"""What /metrics shows, in a registry of its own. Labels come from fixed sets, so their number is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from smelt.server.record import Record

_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

# Our name, the name vLLM gives it (what its routers scrape), the engine's key, the help text.
_GAUGES = (
    ("smelt_requests_running", "vllm:num_requests_running", "num_running", "Answers being computed"),
    ("smelt_requests_waiting", "vllm:num_requests_waiting", "num_waiting", "Answers waiting for room"),
    ("smelt_cached_grammars", None, "num_cached_grammars", "Compiled grammars kept"),
)
_COUNTERS = (
    ("smelt_prefix_cache_hits", "vllm:gpu_prefix_cache_hits", "cached_tokens", "Prompt tokens found in the cache"),
    ("smelt_prefix_cache_queries", "vllm:gpu_prefix_cache_queries", "prompt_tokens", "Prompt tokens looked up"),
    ("smelt_generated_tokens", None, "generated_tokens", "Tokens drawn or forced"),
    ("smelt_preemptions", None, "num_preemptions", "Answers set back for want of memory"),
    ("smelt_engine_steps", None, "num_steps", "Steps of the engine"),
    ("smelt_engine_failed_steps", None, "num_failed_steps", "Steps of the engine that failed"),
)


class HasStats(Protocol):
    """A model that tells its engine's numbers (`engine.EngineStats`, by field name)."""

    def stats(self) -> Mapping[str, float]:
        """Gauges and counters."""
        ...


class EngineCollector(Collector):
    """Reads the engine's numbers when somebody asks, so that serving never waits for a metric."""

    def __init__(self, model: HasStats) -> None:
        self.model = model

    def collect(self) -> Iterator[Metric]:
        """The engine's gauges and counters under our names and vLLM's."""
        stats = self.model.stats()
        used = stats["num_blocks_used"] / max(stats["num_blocks"], 1)
        hit_rate = stats["cached_tokens"] / max(stats["prompt_tokens"], 1)
        for ours, theirs, key, text in _GAUGES:
            yield from _gauge((ours, theirs) if theirs else (ours,), stats[key], text)
        yield from _gauge(("smelt_kv_cache_usage", "vllm:gpu_cache_usage_perc"), used, "Share of blocks in use, 0 to 1")
        yield from _gauge(("vllm:gpu_prefix_cache_hit_rate",), hit_rate, "Share of prompt tokens found in the cache")
        for ours, also, key, text in _COUNTERS:
            for name in (ours, also) if also else (ours,):
                yield CounterMetricFamily(name, text, value=stats[key])


def _gauge(names: tuple[str, ...], value: float, text: str) -> Iterator[Metric]:
    for name in names:
        yield GaugeMetricFamily(name, text, value=value)


class Metrics:
    """The server's own counters beside the engine's."""

    def __init__(self, model: HasStats) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(model))
        labels = ("route", "method", "status")
        self.requests = Counter("smelt_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "smelt_request_seconds",
            "Time to the end of the answer",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_event = Histogram(
            "smelt_first_event_seconds", "Time to the first part of an answer", buckets=_SECONDS, registry=self.registry
        )
        self.tokens = Counter("smelt_tokens", "Tokens of finished requests", ("kind",), registry=self.registry)
        self.stored = Counter("smelt_stored_answers", "Answers to be stored", ("outcome",), registry=self.registry)
        self.admitted = Gauge("smelt_requests_admitted", "Requests in the house", registry=self.registry)

    def note(self, record: Record, scope: Scope) -> None:
        """Count one finished request."""
        route = getattr(scope.get("route"), "path_format", "unmatched")
        method = record.method if record.method in _METHODS else "other"
        self.requests.labels(route, method, str(record.status)).inc()
        self.seconds.labels(route).observe(record.elapsed_s)
        if record.first_event_s is not None:
            self.first_event.observe(record.first_event_s)
        if record.usage is not None:
            self.tokens.labels("prompt").inc(record.usage.prompt_tokens - record.usage.cached_tokens)
            self.tokens.labels("cached").inc(record.usage.cached_tokens)
            self.tokens.labels("completion").inc(record.usage.completion_tokens)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
