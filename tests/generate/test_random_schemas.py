"""Random schemas against a model of noise: every whole answer validates, or the schema was refused; none hangs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message, ResponseFormat, Tool, ToolChoice
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import FinishReason, SamplingParams
from smelt.generate.llm import LLM
from smelt.generate.schema import subschemas
from smelt.generate.tighten import tighten
from tests.generate.fakes import make_llm, random_logits, tiny_tokenizer
from tests.generate.schemas import json_schemas


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """Noise that likes to close what is open: so that answers end within the window."""
    tokenizer = tiny_tokenizer()
    noise = random_logits(tokenizer.vocab_size)
    closing = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i)[:1] in (b'"', b"}", b"]", b",")]

    def logits(history: list[int]) -> np.ndarray:
        row = noise(history)
        row[closing] += 3.0
        return row

    llm = make_llm(logits, num_blocks=256, model_context_len=4096)
    yield llm
    llm.close()


def answer(llm: LLM, schema: dict[str, Any], seed: int) -> str:
    """Ask for an answer under the schema; what became of it."""
    form = ResponseFormat("json_schema", "X", schema)
    params = SamplingParams(seed=seed, max_tokens=600)
    request = ChatRequest(messages=(Message.of("user", "go"),), response_format=form, params=params)
    start = time.thread_time()
    try:
        prepared = llm.prepare(request)
    except InvalidRequestError as error:
        assert time.thread_time() - start < 1.0
        assert error.param == "response_format"
        return "refused"
    assert time.thread_time() - start < 1.0
    found = llm.chat(request)
    assert found.usage.prompt_tokens == len(prepared.prompt_ids)
    if found.finish_reason is FinishReason.LENGTH:
        return "cut"
    jsonschema.Draft202012Validator(schema).validate(json.loads(found.message.text))
    return "valid"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_schemas, st.integers(0, 2**32))
def test_every_answer_validates_or_the_schema_was_refused(llm: LLM, schema: dict[str, Any], seed: int) -> None:
    answer(llm, schema, seed)


@pytest.mark.slow
def test_five_hundred_schemas(llm: LLM) -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(json_schemas, st.integers(0, 2**32))
    def check(schema: dict[str, Any], seed: int) -> None:
        outcomes[answer(llm, schema, seed)] += 1

    check()
    assert outcomes["valid"] > 0.6 * outcomes.total(), outcomes
    assert outcomes["cut"] < 0.1 * outcomes.total(), outcomes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_schemas, st.integers(0, 2**32))
def test_arguments_of_a_strictly_honoured_tool_validate(llm: LLM, schema: dict[str, Any], seed: int) -> None:
    if schema.get("type") != "object":
        schema = {"type": "object", "properties": {"v": schema}, "required": ["v"], "$defs": schema.get("$defs", {})}
    supported = {"not", "uniqueItems", "oneOf", "format"}
    if any(supported & set(node) for node, _ in subschemas(schema) if isinstance(node, dict)):
        return  # a tool that is not strict may lose these
    request = ChatRequest(
        messages=(Message.of("user", "go"),),
        tools=(Tool("f", "", schema),),
        tool_choice=ToolChoice("required", ("f",)),
        params=SamplingParams(seed=seed, max_tokens=600),
    )
    try:
        found = llm.chat(request)
    except InvalidRequestError as error:
        assert error.param == "tools[0].function.parameters"
        return
    if found.finish_reason is not FinishReason.LENGTH:
        (call,) = found.message.tool_calls
        jsonschema.Draft202012Validator(schema).validate(json.loads(call.arguments))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(json_schemas, st.data())
def test_what_the_tightened_schema_accepts_the_original_accepts(schema: dict[str, Any], data: st.DataObject) -> None:
    tightened = tighten(schema)
    if any(isinstance(node, dict) and {"$ref", "format"} & set(node) for node, _ in subschemas(schema)):
        return  # hypothesis-jsonschema resolves neither recursion nor every format
    try:
        instance = data.draw(from_schema(tightened).filter(lambda value: len(json.dumps(value)) < 2000))
    except Exception as error:
        if type(error).__module__.startswith("hypothesis"):
            raise
        return  # a schema it cannot draw from
    jsonschema.Draft202012Validator(schema).validate(instance)


def test_tightening_reads_what_stands_where_no_schema_should() -> None:
    """A `format` that was no string, or a bound that was an object, came out as a failure of ours (500, not 400)."""
    odd = {"type": "number", "exclusiveMinimum": {"properties": 7, "format": ["date"]}}
    assert tighten(odd) == {"type": "number", "exclusiveMinimum": {"properties": 7}}
    assert tighten({"x": {"properties": {}, "required": [[]]}}) == {"x": {"properties": {}, "required": [[]]}}


def test_tightening_closes_listed_objects_and_drops_what_only_describes() -> None:
    schema = {
        "title": "T",
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": "d", "format": "int64"},
            "at": {"type": "string", "format": "date"},
            "open": {"type": "object", "additionalProperties": True, "properties": {"a": {}}},
            "free": {"type": "object"},
        },
        "required": ["title"],
    }
    assert tighten(schema) == {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "at": {"type": "string", "format": "date"},
            "open": {"type": "object", "additionalProperties": True, "properties": {"a": {}}},
            "free": {"type": "object"},
        },
        "required": ["title"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}, "required": ["b"]}]},
        {"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "$ref": "#/$defs/d", "$defs": {"d": {"required": ["z"]}}},
        {"properties": {"a": {}}, "required": ["b"]},
        {"properties": {"a": {}}, "minProperties": 1},
    ],
)
def test_tightening_closes_nothing_that_another_part_could_contradict(schema: dict[str, Any]) -> None:
    assert tighten(schema) == schema
