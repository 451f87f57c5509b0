"""/metrics: the names that routers scrape, counted right, and labels that callers cannot multiply."""

from __future__ import annotations

from typing import Any

from tests.server.conftest import Post


def _samples(client: Any) -> dict[str, float]:
    text = client.get("/metrics").text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_names_that_vllm_routers_scrape(client: Any) -> None:
    samples = _samples(client)
    assert samples["vllm:num_requests_running"] == samples["smelt_requests_running"] == 4
    assert samples["vllm:num_requests_waiting"] == 4
    assert samples["vllm:gpu_cache_usage_perc"] == 0.25
    assert samples["vllm:gpu_prefix_cache_hit_rate"] == 0.5
    assert samples["vllm:gpu_prefix_cache_hits_total"] == 4
    assert samples["vllm:gpu_prefix_cache_queries_total"] == 8


def test_requests_and_tokens_are_counted(client: Any, chat: Post, complete: Post) -> None:
    chat()
    chat(stream=True)
    chat(foo=1)
    complete()
    samples = _samples(client)
    route = 'smelt_requests_total{method="POST",route="/v1/chat/completions",status="%d"}'
    assert samples[route % 200] == 2
    assert samples[route % 400] == 1
    assert samples['smelt_tokens_total{kind="prompt"}'] == 15
    assert samples['smelt_tokens_total{kind="cached"}'] == 12
    assert samples['smelt_tokens_total{kind="completion"}'] == 6
    assert samples["smelt_first_event_seconds_count"] == 3
    assert samples["smelt_requests_admitted"] == 0


def test_callers_cannot_add_labels(client: Any) -> None:
    client.request("BREW", "/pot")
    before = len(_samples(client))
    for i in range(50):
        client.request(f"VERB{i}", f"/path/{i}")
        client.get(f"/v1/models/name-{i}")
    added = set(_samples(client)) - {""}
    assert len(added) <= before + 40  # one route and one histogram more, whatever the 50 names were
