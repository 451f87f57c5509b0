"""From bytes to lines: whole answers, streams put together, and what cannot become a line."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.server.recorder.exchange import Exchange, UnusableError, assembled, events, lines
from smelt.server.recorder.masking import Masker

ASKED: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hi"}],
    "temperature": 0.5,
    "user": "user-77",
    "metadata": {"who": "ada"},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "parallel_tool_calls": False,
}
ANSWER: dict[str, Any] = {
    "model": "m-1",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
}


def exchange(asked: Any = ASKED, answer: Any = ANSWER, **fields: Any) -> Exchange:
    raw = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in (asked, answer)]
    defaults = {"kind": "chat", "encoding": "", "content_type": "application/json"}
    return Exchange(request=raw[0], response=raw[1], **(defaults | fields))


def stream(*chunks: dict[str, Any], done: bool = True) -> bytes:
    data = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    return data + (b"data: [DONE]\n\n" if done else b"")


def test_a_line_is_what_fine_tuning_takes_and_a_side_field() -> None:
    (line,) = lines(exchange(), Masker())
    about = line.pop("metadata")
    assert line == {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
        "tools": ASKED["tools"],
        "parallel_tool_calls": False,
    }
    assert about["usage"] == ANSWER["usage"] and about["settings"] == {"temperature": 0.5} and about["model"] == "m-1"
    assert "ada" not in json.dumps(about) and "user-77" not in json.dumps(about)


def test_an_answer_sent_back_as_history_loses_what_a_file_has_not() -> None:
    """The official client sends its message object whole; fine-tuning on the record refused `annotations`."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": 0}
    said: dict[str, Any] = {"role": "assistant", "content": None, "annotations": [], "audio": None, "refusal": None}
    asked = {**ASKED, "messages": [*ASKED["messages"], {**said, "tool_calls": [call]}, ANSWER["choices"][0]["message"]]}
    (line,) = lines(exchange(asked), Masker())
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert line["messages"][1] == {"role": "assistant", "tool_calls": calls}
    assert line["messages"][2] == {"role": "assistant", "content": "Hello."}


def test_each_choice_is_a_line() -> None:
    choices = [{**ANSWER["choices"][0], "index": i, "message": {"content": str(i)}} for i in range(3)]
    found = lines(exchange(answer={**ANSWER, "choices": choices}), Masker())
    assert [line["messages"][-1]["content"] for line in found] == ["0", "1", "2"]


def test_a_stream_of_calls_is_put_together() -> None:
    def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
        return {"model": "m-1", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}

    def call(index: int, arguments: str, **fields: Any) -> dict[str, Any]:
        function = {"arguments": arguments, **({"name": fields.pop("name")} if "name" in fields else {})}
        return delta(tool_calls=[{"index": index, "function": function, **fields}])

    raw = stream(
        delta(role="assistant", content="Let "),
        delta(content="me see."),
        call(0, "", id="a", type="function", name="f"),
        call(0, '{"x"'),
        call(1, "{}", id="b", type="function", name="g"),
        call(0, ": 1}"),
        delta("tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9}},
    )
    (line,) = lines(exchange(answer=raw, content_type="text/event-stream; charset=utf-8"), Masker())
    said = line["messages"][-1]
    assert said["content"] == "Let me see."
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in said["tool_calls"]] == [
        ("a", "f", '{"x": 1}'),
        ("b", "g", "{}"),
    ]
    assert line["metadata"]["finish_reason"] == "tool_calls" and line["metadata"]["usage"]["completion_tokens"] == 9


@given(cut=st.integers(0, 400), ending=st.sampled_from(["\n", "\r\n"]))
def test_a_stream_cut_anywhere_is_no_answer(cut: int, ending: str) -> None:
    whole = stream({"choices": [{"delta": {"content": "Hi"}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
    raw = whole.replace(b"\n", ending.encode())
    if cut < len(raw) - 2 * len(ending):
        with pytest.raises(UnusableError):
            assembled(raw[:cut], "chat")
    assert assembled(raw, "chat")["choices"][0]["message"] == {"content": "Hi"}


def test_events_follow_the_specification() -> None:
    raw = b": comment\n\nevent: x\ndata: one\ndata: two\n\ndata:three\r\n\r\n"
    assert list(events(raw)) == ["one\ntwo", "three"]


def test_completions_keep_prompt_and_text() -> None:
    answer = {"model": "m", "choices": [{"text": "Once upon", "finish_reason": "length", "index": 0}]}
    (line,) = lines(exchange({"prompt": "Once", "echo": True}, answer, kind="completion"), Masker())
    assert (line["prompt"], line["completion"]) == ("Once", " upon")
    raw = stream({"choices": [{"text": "a"}]}, {"choices": [{"text": "b", "finish_reason": "stop"}]})
    streamed = exchange({"prompt": ["Once"]}, raw, kind="completion", content_type="text/event-stream")
    assert lines(streamed, Masker())[0]["completion"] == "ab"
    with pytest.raises(UnusableError, match="no prompt text"):
        lines(exchange({"prompt": [1, 2]}, answer, kind="completion"), Masker())


def test_compressed_answers_are_read() -> None:
    packed = exchange(answer=gzip.compress(json.dumps(ANSWER).encode()), encoding="gzip")
    assert lines(packed, Masker())[0]["messages"][-1]["content"] == "Hello."
    with pytest.raises(UnusableError, match="unknown encoding"):
        lines(exchange(answer=b"\x1f\x8b broken", encoding="gzip"), Masker())


def test_log_probabilities_go_with_what_was_masked() -> None:
    entry = {"content": [{"token": "sk-", "logprob": -0.1, "top_logprobs": []}]}

    def said(text: str) -> dict[str, Any]:
        choice = {"finish_reason": "stop", "message": {"content": text}, "logprobs": entry}
        return {"choices": [choice]}

    (plain,) = lines(exchange(answer=said("fine")), Masker())
    assert plain["metadata"]["logprobs"] == entry
    (masked,) = lines(exchange(answer=said("sk-abcdefghijklmnop1234")), Masker())
    assert "logprobs" not in masked["metadata"] and masked["metadata"]["masked"] == {"api_key": 1}


@pytest.mark.parametrize(
    ("asked", "answer", "reason"),
    [
        (b"{", ANSWER, "unreadable request"),
        ([], ANSWER, "unreadable request"),
        (ASKED, b"nope", "unreadable answer"),
        (ASKED, {"choices": []}, "no choices"),
        ({"model": "m"}, ANSWER, "no messages"),
        (ASKED, {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}, "empty answer"),
        (ASKED, {"choices": [{"message": {"content": "x"}}]}, "unfinished answer"),
    ],
)
def test_what_is_no_exchange_is_left_out_with_a_reason(asked: Any, answer: Any, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason):
        lines(exchange(asked, answer), Masker())


def test_an_error_in_the_stream_is_no_answer() -> None:
    raw = stream({"choices": [{"delta": {"content": "x"}}]}, {"error": {"message": "late"}})
    with pytest.raises(UnusableError, match="error while streaming"):
        assembled(raw, "chat")
