"""Rows 12, 13, 14, 15 of reference/safety.md 5.2: numbers, prompts of ids, unknown fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smelt.tokenizer import Tokenizer
from tests.server.live import Server

INT31 = 2**31

BAD_NUMBERS: list[tuple[str, Any]] = [
    *(("max_tokens", value) for value in (0, -1, INT31, "10", 1.5, True, [])),
    *(("max_completion_tokens", value) for value in (0, -1, INT31, "10")),
    *(("n", value) for value in (0, -1, 10**6, 129, "1", 1.0)),
    *(("stop", value) for value in (["x"] * 10_000, "", [""], [], [None], 5, ["x", 5], "x" * 10_000)),
    *(("temperature", value) for value in (-1, 2.01, 1e9, "0.5", [])),
    *(("top_p", value) for value in (-0.1, 1.01, 2, "1")),
    *(("frequency_penalty", value) for value in (-2.1, 2.1, 1e308, "0")),
    *(("presence_penalty", value) for value in (-2.1, 2.1, {})),
    *(("seed", value) for value in (2**64, 2**63, -(2**63) - 1, 1.5, "1")),
    *(("logit_bias", value) for value in ({"x": 1}, {"-1": 1}, {"+1": 1}, {"01": 1}, {"1.0": 1}, {" 1": 1}, {"": 1})),
    *(("logit_bias", value) for value in ({"1": 1e9}, {"1": -101}, {"1": "5"}, {"1": None}, [], {"99999999": 1})),
    ("stream", "true"),
    ("stream", 1),
]


def _short(case: tuple[str, Any]) -> str:
    return f"{case[0]}={json.dumps(case[1])[:20]}"


@pytest.mark.parametrize("case", BAD_NUMBERS, ids=_short)
def test_chat_numbers(live: Server, case: tuple[str, Any]) -> None:
    """Row 13."""
    reply = live.chat(**({"max_tokens": None} | dict([case])))
    assert reply.status == 400
    assert reply.error["param"].startswith(case[0])
    assert len(reply.body) < 500


@pytest.mark.parametrize(
    "case",
    [case for case in BAD_NUMBERS if case[0] != "max_completion_tokens" and case != ("max_tokens", 0)]
    + [("logprobs", value) for value in (-1, 6, 10**6, True, "1")],
    ids=_short,
)
def test_completion_numbers(live: Server, case: tuple[str, Any]) -> None:
    """Row 13."""
    reply = live.complete(**dict([case]))
    assert reply.status == 400
    assert reply.error["param"].startswith(case[0])


MILLION_KEYS = b"{" + b",".join(b'"%d":1' % i for i in range(10**6)) + b"}"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_million_biases(live: Server, path: str) -> None:
    """Row 13: refused while it is measured, with the parameter to blame."""
    start = live.cpu_s
    reply = live.post(path, b'{"model":"gpt-4o-mini","logit_bias":' + MILLION_KEYS + b',"messages":[]}')
    assert (reply.status, reply.error["param"]) == (400, "logit_bias")
    assert live.cpu_s - start < 1.5


@pytest.mark.parametrize("value", [10**6, 21, -1, "5", True, 1.0])
def test_top_logprobs(live: Server, value: Any) -> None:
    """Row 13."""
    reply = live.chat(logprobs=True, top_logprobs=value)
    assert (reply.status, reply.error["param"]) == (400, "top_logprobs")


LEGAL: list[dict[str, Any]] = [
    {"max_tokens": 1},
    {"max_completion_tokens": 1, "max_tokens": None},
    {"n": 128, "max_tokens": 1},
    {"stop": ["a", "b", "c", "d"]},
    {"stop": "x" * 4096},
    {"temperature": 0},
    {"temperature": 2},
    {"top_p": 0},
    {"top_p": 1},
    {"seed": 2**63 - 1},
    {"seed": -(2**63)},
    {"logit_bias": {"0": -100, "5": 100}},
    {"logit_bias": {str(i): -1 for i in range(300)}},
    {"logprobs": True, "top_logprobs": 0},
    {"logprobs": True, "top_logprobs": 20},
]


@pytest.mark.parametrize("fields", LEGAL, ids=lambda fields: json.dumps(fields)[:40])
def test_legal_edges(live: Server, fields: dict[str, Any], stream: bool) -> None:
    """Row 13."""
    assert live.chat(**fields, stream=stream).status == 200


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [-2, -0.5, 0, 2])
@pytest.mark.parametrize("more", [{}, {"response_format": {"type": "json_object"}}], ids=["text", "json"])
def test_penalties_work_beside_everything(live: Server, penalty: str, value: float, more: dict[str, Any]) -> None:
    """Row 14: elsewhere any penalty once ended the engine."""
    messages = [{"role": "user", "content": "json, please"}]
    reply = live.chat(messages=messages, **{penalty: value}, **more, logit_bias={"7": 5}, n=2, max_tokens=8)
    assert reply.status == 200


UNKNOWN = ["chat_template", "chat_template_kwargs", "documents", "guided_json", "prompt_embeds", "top_k", "min_p", "éé"]


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("value", [None, "{{ 7*7 }}", {"tokenize": True}], ids=["null", "text", "object"])
def test_unknown_fields(live: Server, name: str, value: Any) -> None:
    """Row 15: never rendered, never ignored, null or not."""
    for reply in (live.chat(**{name: value}), live.complete(**{name: value})):
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unknown_parameter", name)
        assert "49" not in reply.error["message"]


def test_a_long_unknown_name_is_cut(live: Server) -> None:
    reply = live.chat(**{"x" * 100_000: 1})
    assert reply.error["code"] == "unknown_parameter"
    assert len(reply.body) < 500


BAD_PROMPTS: dict[str, Any] = {
    "negative": [5, -1],
    "beyond the vocabulary": [5, 1_000_000],
    "beyond 32 bits": [2**40],
    "decimal": [5, 6.0],
    "boolean": [True],
    "empty": [],
    "empty inside": [[]],
    "mixed": [5, "x"],
    "mixed, strings first": ["x", 5],
    "mixed lists": [[5], "x"],
    "too deep": [[[5]]],
    "null": None,
    "object": {"text": "x"},
    "3 000 prompts": ["x"] * 3_000,
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_prompts(live: Server, name: str) -> None:
    """Row 12."""
    body = {"model": "gpt-4o-mini", "prompt": BAD_PROMPTS[name], "max_tokens": 1}
    reply = live.post("/v1/completions", json.dumps(body, separators=(",", ":")).encode())
    assert reply.status == 400
    assert reply.error["param"].startswith("prompt")


def test_ten_million_ids(live: Server) -> None:
    """Row 12."""
    reply = live.post("/v1/completions", b'{"model":"gpt-4o-mini","prompt":[' + b"1," * (10**7 - 1) + b"1]}")
    assert (reply.status, reply.error["param"]) == (400, "prompt")


def test_control_ids_in_prompts(live: Server, tiny_folder: Path) -> None:
    """Row 12: ids are no way around the text-only door."""
    controls = Tokenizer.load(tiny_folder).control_ids
    refused = {name for name, i in controls.items() if live.complete(prompt=[5, i, 6]).status == 400}
    assert refused == set(controls)
