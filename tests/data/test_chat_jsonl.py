"""Chat files: what is right is read, what is wrong is said with line and field, weight 0 is not learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.chat import HouseRenderer
from smelt.core.errors import DataError
from smelt.data.chat_jsonl import ChatFile, encode_record, encode_text, read_chat_jsonl
from smelt.tokenizer import Tokenizer
from tests.tiny import tiny_tokenizer_files

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello."}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "42"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(tiny_tokenizer_files()[0]["tokenizer.json"].decode())


def read(tmp: Path, *lines: Any, **options: Any) -> ChatFile:
    path = tmp / "chats.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_chat_jsonl(path, **options)


def test_the_format_is_read(tmp_path: Path) -> None:
    line = {
        "messages": [{"role": "system", "content": [{"type": "text", "text": "S"}]}, USER, CALLING, RESULT, REPLY],
        "tools": [TOOL],
        "parallel_tool_calls": False,
    }
    (record,) = read(tmp_path, line, "", "  ").records
    assert [m.role for m in record.example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert record.example.tools[0].name == "f" and record.example.messages[2].tool_calls[0].id == "c1"
    assert record.example.answer.text == "Hello." and all(record.weights) and record.line == 1


def test_a_recorded_schema_is_shown_to_the_model_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    line = {"messages": [USER, REPLY], "metadata": {"settings": {"response_format": wanted}, "finish_reason": "stop"}}
    (record,) = read(tmp_path, line).records
    assert record.example.response_format.schema == schema
    assert tokenizer.control_ids["<|schema|>"] in encode_record(HouseRenderer(tokenizer), record).ids


def test_weight_zero_is_context(tmp_path: Path, tokenizer: Tokenizer) -> None:
    renderer = HouseRenderer(tokenizer)
    first = {**REPLY, "content": "Unlearned words"}
    plain, weighed = read(
        tmp_path,
        {"messages": [USER, first, USER, REPLY]},
        {"messages": [USER, {**first, "weight": 0}, USER, {**REPLY, "weight": 1}]},
    ).records
    whole, part = encode_record(renderer, plain), encode_record(renderer, weighed)
    assert whole.ids == part.ids
    learned = [tokenizer.decode([i]) for i, on in zip(part.ids, part.loss_mask, strict=True) if on]
    assert "".join(learned) == "Hello."
    assert sum(part.loss_mask) < sum(whole.loss_mask)


def test_prompts_and_completions(tmp_path: Path, tokenizer: Tokenizer) -> None:
    cut, ended = read(
        tmp_path,
        {"prompt": "Once", "completion": " upon", "metadata": {"finish_reason": "length"}},
        {"prompt": "Once", "completion": " upon"},
    ).texts
    one, two = (encode_text(tokenizer, record, 2) for record in (cut, ended))
    assert two.ids == [*one.ids, 2] and sum(two.loss_mask) == sum(one.loss_mask) + 1
    assert tokenizer.decode([i for i, on in zip(one.ids, one.loss_mask, strict=True) if on]) == " upon"


WRONG: list[tuple[Any, str]] = [
    ("{", "line 1: not JSON"),
    ("[]", "line 1: sought an object, found a list"),
    ({"messages": "x"}, "line 1, messages: sought a list, found a string"),
    ({"messages": []}, "line 1, messages: empty"),
    ({"messages": [USER]}, "line 1, messages[0].role: sought assistant"),
    ({"messages": [USER, {**REPLY, "weight": 0}]}, "line 1, messages: no assistant message"),
    ({"messages": [USER, {**REPLY, "weight": 2}]}, "line 1, messages[1].weight: sought 0 or 1, found 2"),
    ({"messages": [{"role": "boss", "content": ""}]}, "line 1, messages[0].role: sought one of system"),
    ({"messages": [{"role": "user"}, REPLY]}, "line 1, messages[0].content: sought a string or a list"),
    ({"messages": [{**USER, "content": 3}, REPLY]}, "line 1, messages[0].content: sought a string or a list"),
    (
        {"messages": [{**USER, "content": [{"type": "image_url"}]}, REPLY]},
        "line 1, messages[0].content[0].type: sought text, found 'image_url'",
    ),
    ({"messages": [{**USER, "mood": 1}, REPLY]}, "line 1, messages[0].mood: unknown field"),
    ({"messages": [USER, REPLY], "extra": 1}, "line 1, extra: unknown field"),
    ({"messages": [USER, CALLING, REPLY]}, "line 1, messages[2].role: sought the results"),
    ({"messages": [USER, RESULT, REPLY]}, "line 1, messages[1].tool_call_id: names no call"),
    (
        {"messages": [USER, {**CALLING, "tool_calls": [CALL, CALL]}]},
        "line 1, messages[1].tool_calls: two calls have the same id",
    ),
    (
        {"messages": [USER, {**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}]},
        "line 1, messages[1].tool_calls[0].function.arguments: not JSON",
    ),
    ({"messages": [USER, REPLY], "tools": [{}]}, "line 1, tools[0]: sought"),
    ({"messages": [USER, REPLY], "functions": [{}]}, "line 1, functions: this old form"),
    (
        {"messages": [USER, REPLY], "metadata": {"finish_reason": "length"}},
        "line 1, metadata.finish_reason: the answer was cut off",
    ),
    ({"prompt": "x"}, "line 1, completion: sought a string, found nothing"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[message[8:50] for _, message in WRONG])
def test_what_is_wrong_is_said_with_line_and_field(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, line)
    assert message in str(caught.value)


def test_problems_can_be_skipped_and_are_told(tmp_path: Path) -> None:
    found = read(tmp_path, {"messages": [USER, REPLY]}, "{", {"messages": [USER]}, on_problem="skip")
    assert len(found.records) == 1 and [p.line for p in found.problems] == [2, 3]
    with pytest.raises(DataError, match="found none that can be used"):
        read(tmp_path, "{", on_problem="skip")
    with pytest.raises(DataError, match="and 2 more"):
        read(tmp_path, *["{"] * 12)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_chat_jsonl(tmp_path / "x")
    with pytest.raises(DataError, match="cannot be read"):
        read_chat_jsonl(tmp_path / "none")


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["messages", "role", "content", "tools", "metadata", "tool_calls", "function", "prompt", "weight"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_value_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    with pytest.raises(DataError):
        read(tmp_path_factory.getbasetemp(), {"messages": value})
    with pytest.raises(DataError):
        read(tmp_path_factory.getbasetemp(), {"messages": [USER, REPLY], "tools": [value]})
