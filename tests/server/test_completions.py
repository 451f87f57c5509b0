"""Raw completions: every form of prompt, echo, log-probabilities, many prompts at once."""

from __future__ import annotations

from typing import Any

import pytest

from smelt.core.errors import EngineError
from smelt.core.sampling import FinishReason, SamplingParams, Usage
from smelt.generate.completion import PromptText, PromptToken
from smelt.generate.events import AnswerEnd, AnswerText, AnswerUsage, TokenReport, TokenText
from tests.server.conftest import Post
from tests.server.fake import FakeLLM
from tests.server.test_chat import chunks

C = TokenText(3, "c", b"c", -0.5)
ECHO = (
    PromptText(0, "ab", (PromptToken(1, "a", b"a", None), PromptToken(2, "b", b"b", -1.0, (C,)))),
    AnswerText(0, "d", (TokenReport(TokenText(4, "d", b"d", -2.0), ()),)),
    AnswerEnd(0, FinishReason.LENGTH),
    AnswerUsage(Usage(2, 1)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_forms_of_prompt(prompt: Any, seen: list[Any], complete: Post, llm: FakeLLM) -> None:
    reply = complete(prompt=prompt, n=1)
    assert reply.status_code == 200
    assert [prompt for prompt, _, _ in llm.prompts] == seen
    assert [choice["index"] for choice in reply.json()["choices"]] == list(range(len(seen)))


def test_defaults(complete: Post, llm: FakeLLM) -> None:
    complete()
    assert llm.prompts == [("Once", SamplingParams(max_tokens=16), False)]


def test_many_prompts_keep_their_places(complete: Post, llm: FakeLLM) -> None:
    """More prompts than run at once; choice numbers are prompt * n + choice; usage is the sum."""
    llm.script = (
        AnswerText(1, "y"),
        AnswerText(0, "x"),
        AnswerEnd(0, FinishReason.STOP),
        AnswerEnd(1, FinishReason.LENGTH),
        AnswerUsage(Usage(2, 3, 1)),
    )
    body = complete(prompt=["p"] * 100, n=2).json()
    assert [choice["text"] for choice in body["choices"]] == ["x", "y"] * 100
    assert [choice["index"] for choice in body["choices"]] == list(range(200))
    assert body["usage"]["total_tokens"] == 500
    assert llm.num_open == 0


def test_one_failing_prompt_fails_the_request(complete: Post, llm: FakeLLM) -> None:
    llm.script = (AnswerText(0, "x"), EngineError("broke"))
    assert complete(prompt=["p"] * 10).status_code == 500
    assert llm.num_open == 0


def test_echo_with_logprobs(complete: Post, llm: FakeLLM) -> None:
    """The four lists as lm-evaluation-harness reads them: null for the first token, offsets into the text."""
    llm.script = ECHO
    (choice,) = complete(echo=True, logprobs=1).json()["choices"]
    assert choice["text"] == "abd"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "d"],
        "token_logprobs": [None, -1.0, -2.0],
        "top_logprobs": [None, {"c": -0.5}, {}],
        "text_offset": [0, 1, 2],
    }
    assert llm.prompts[0][2] is True
    assert llm.prompts[0][1].top_logprobs == 1


def test_streamed_pieces_add_up(complete: Post, llm: FakeLLM) -> None:
    llm.script = ECHO
    parts = chunks(complete(echo=True, logprobs=1, stream=True, stream_options={"include_usage": True}))
    choices = [part["choices"][0] for part in parts[:-1]]
    assert [choice["text"] for choice in choices] == ["ab", "d", ""]
    assert [offset for choice in choices for offset in choice["logprobs"]["text_offset"]] == [0, 1, 2]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]
    assert (parts[-1]["choices"], parts[-1]["usage"]["total_tokens"]) == ([], 3)
    assert {part["object"] for part in parts} == {"text_completion"}


def test_best_of_one_is_what_happens_anyway(complete: Post) -> None:
    assert complete(best_of=1).status_code == 200
    reply = complete(best_of=2)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_value")
