"""The template written for others gives, in transformers' hands, the ids that HouseRenderer gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.chat import HouseRenderer
from smelt.chat.house_template import house_tokenizer_config
from smelt.core.messages import Message, TextPart, Tool, ToolCall
from smelt.tokenizer import Tokenizer
from tests.tokenizer.samples import house_tokenizer, steady


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("house")
    house_tokenizer().save(folder, house_tokenizer_config())
    return AutoTokenizer.from_pretrained(folder)


def _their_ids(theirs: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    ids: list[int] = theirs.apply_chat_template(messages, return_dict=False, **options)
    return ids


def test_plain_conversation(theirs: Any) -> None:
    renderer = HouseRenderer(house_tokenizer())
    turns = [("system", "Be brief.\n"), ("user", "Wetter in Köln?"), ("assistant", ""), ("developer", " {x} ")]
    ours = renderer.render([Message.of(role, text) for role, text in turns], open_turn=True)  # type: ignore[arg-type]
    given_ = [{"role": role, "content": text} for role, text in turns]
    assert _their_ids(theirs, given_, add_generation_prompt=True) == ours.ids


def test_tools_and_their_history(theirs: Any) -> None:
    renderer = HouseRenderer(house_tokenizer())
    fields = {
        "city": {"type": "string", "description": "City\n name"},
        "unit": {"enum": ["c", "f"], "default": "c"},
        "tags": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "at-home": {"type": "object", "properties": {"x": {"type": ["number", "null"]}}, "required": ["x"]},
    }
    parameters = {"type": "object", "properties": fields, "required": ["city"]}
    tools = [Tool("get_weather", "Current  weather.", parameters), Tool("stop")]
    ours = renderer.render(
        [
            Message.of("user", "Hi", name="Ann"),
            Message(
                "assistant", tool_calls=(ToolCall("c1", "get_weather", '{"city":"Köln"}'), ToolCall("c2", "stop", "{}"))
            ),
            Message.of("tool", "rain", tool_call_id="c1"),
            Message("tool", (TextPart("a"), TextPart("b")), tool_call_id="c2"),
        ],
        tools=tools,
        open_turn=True,
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}},
        {"id": "c2", "type": "function", "function": {"name": "stop", "arguments": "{}"}},
    ]
    messages: list[dict[str, Any]] = [
        {"role": "user", "name": "Ann", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": t} for t in "ab"]},
    ]
    assert _their_ids(theirs, messages, tools=_openai(tools), add_generation_prompt=True) == ours.ids


def _openai(tools: list[Tool]) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in tools
    ]


WORD = st.text("ab\n */\"'ßé", max_size=6)
NOTES = st.fixed_dictionaries({}, optional={"description": WORD, "title": WORD, "default": st.integers() | WORD})
SCALARS = st.sampled_from(["string", "number", "integer", "boolean", "null"])


def _noted(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda schema, notes: {**schema, **notes}, schemas, NOTES)


def _larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(st.sampled_from(["a", "b c", "größe", "1"]), inner, max_size=3)
    required = st.lists(st.sampled_from(["a", "b c"]), max_size=2, unique=True)
    objects = st.fixed_dictionaries(
        {"type": st.just("object")},
        optional={"properties": properties, "required": required, "additionalProperties": st.just(False) | inner},
    )
    arrays = st.fixed_dictionaries({"type": st.just("array")}, optional={"items": inner})
    choices = st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})
    return _noted(objects | arrays | choices)


SCHEMAS = st.recursive(
    _noted(
        st.fixed_dictionaries({"type": SCALARS | st.lists(SCALARS, min_size=1, max_size=2, unique=True)})
        | st.fixed_dictionaries({"enum": st.lists(st.integers() | WORD, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"const": WORD})
        | st.just({})
        | st.just({"type": "string", "contentEncoding": "base64"})
    ),
    _larger,
    max_leaves=5,
)


@settings(steady, max_examples=60)
@given(properties=st.dictionaries(st.sampled_from(["a", "b c", "größe"]), SCHEMAS, max_size=3), about=WORD)
def test_signatures(theirs: Any, properties: dict[str, Any], about: str) -> None:
    parameters = {"type": "object", "properties": properties, "required": ["a"]}
    tools = [Tool("f", about, parameters)]
    ours = HouseRenderer(house_tokenizer()).render([Message.of("user", "x")], tools=tools)
    copy = json.loads(json.dumps(_openai(tools)))
    theirs_ids = _their_ids(theirs, [{"role": "user", "content": "x"}], tools=copy)
    tokenizer: Tokenizer = house_tokenizer()
    assert tokenizer.decode(theirs_ids) == tokenizer.decode(ours.ids)
    assert theirs_ids == ours.ids
