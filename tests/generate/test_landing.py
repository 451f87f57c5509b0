"""A JSON answer reaches its end inside its limit, and one that ends by itself is left alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smelt.core.messages import Message, ResponseFormat
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import FinishReason, SamplingParams
from smelt.generate.events import AnswerText
from smelt.generate.landing import Quotes
from smelt.generate.llm import LLM
from tests.generate.fakes import make_llm, random_logits, scripted_logits, tiny_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "trips": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"to": {"type": "string"}, "days": {"type": "integer"}, "why": {"enum": ["work", "fun"]}},
                "required": ["to", "days", "why"],
            },
        },
        "born": {"type": "string", "format": "date"},
        "partner": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "tags", "trips", "born", "partner"],
}


def request(schema: dict[str, Any], max_tokens: int, **params: Any) -> ChatRequest:
    return ChatRequest(
        messages=(Message.of("user", "go"),),
        response_format=ResponseFormat("json_schema", "X", schema),
        params=SamplingParams(max_tokens=max_tokens, **params),
    )


@pytest.fixture(scope="module")
def rambler() -> Iterator[LLM]:
    """A model that never wants to close anything."""
    tokenizer = tiny_tokenizer()
    noise = random_logits(tokenizer.vocab_size)
    shy = [i for i in range(tokenizer.vocab_size) if any(c in tokenizer.token_bytes(i) for c in b'"}]')]

    def logits(history: list[int]) -> Any:
        row = noise(history)
        row[shy] -= 8.0
        return row

    llm = make_llm(logits, num_blocks=256, model_context_len=4096)
    yield llm
    llm.close()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(90, 300), st.integers(0, 2**32))
def test_a_model_that_never_ends_is_brought_to_an_end(rambler: LLM, limit: int, seed: int) -> None:
    answer = rambler.chat(request(PERSON, limit, seed=seed))
    jsonschema.validate(json.loads(answer.message.text), PERSON)
    assert answer.finish_reason is FinishReason.LENGTH
    assert limit - 60 < answer.usage.completion_tokens <= limit


def test_most_outcomes_at_narrow_limits_are_whole(rambler: LLM) -> None:
    outcomes: Counter[str] = Counter()
    for limit in range(10, 120, 5):
        text = rambler.chat(request(PERSON, limit, seed=limit)).message.text
        try:
            jsonschema.validate(json.loads(text), PERSON)
            outcomes["whole"] += 1
        except json.JSONDecodeError:
            outcomes["cut"] += 1
    # The shortest answer takes about 50 tokens: below that nothing can be done, above it nothing is lost.
    assert outcomes["cut"] <= 10, outcomes


@pytest.mark.parametrize("room", [12, 50])
def test_an_answer_that_ends_by_itself_is_left_alone(room: int) -> None:
    text = '{"name":"Ada Lovelace, countess","tags":["x","y"],"trips":[],"born":"1815-12-10","partner":null}'
    tokenizer = tiny_tokenizer()
    llm = make_llm(scripted_logits(tokenizer, tokenizer.encode(text)))
    limit = len(tokenizer.encode(text)) + room
    answer = llm.chat(request(PERSON, limit, temperature=0.0))
    assert (answer.message.text, answer.finish_reason) == (text, FinishReason.STOP)
    llm.close()


def test_log_probabilities_do_not_change_where_an_answer_is_led(rambler: LLM) -> None:
    """Without them the engine takes forced tokens, with them it draws under masks; the landing must be the same."""
    for limit in (70, 120, 200):
        plain = rambler.chat(request(PERSON, limit, seed=5)).message.text
        prepared = rambler.prepare(request(PERSON, limit, seed=5, top_logprobs=0))
        reported = [r for e in rambler.events(prepared) if isinstance(e, AnswerText) for r in e.reports]
        assert b"".join(report.token.bytes for report in reported).decode() == plain


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_quotes_know_where_strings_are(value: Any) -> None:
    raw = json.dumps(value, ensure_ascii=False).encode()
    quotes, outside = Quotes(), b""
    for i in range(len(raw)):
        before = quotes.inside
        quotes.feed(raw[i : i + 1])
        outside += b"" if before or quotes.inside else raw[i : i + 1]
    assert not quotes.inside
    assert outside == re.sub(rb'"(?:[^"\\]|\\.)*"', b"", raw)
