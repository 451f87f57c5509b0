"""Scores of given text: our engine against transformers' logits, and over HTTP against in process."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from smelt.core.errors import AuthenticationError, EngineError, InvalidRequestError, NotFoundError, OverloadedError
from smelt.core.sampler import ChatRequest, ScoreRequest
from smelt.evals import passages
from smelt.evals.client import HTTPSampler, score_of
from smelt.evals.passages import Passage, pieces
from smelt.generate.llm import LLM
from smelt.generate.options import LLMOptions

TEXTS = [
    "One short line.",
    "Ein Satz über Köln, größer als 3,5.",
    "没有空格的句子。" * 40,
    "def f(x):\n    return x\n" * 60,
]
LONG = "A paragraph of plain words that goes on and on. " * 20


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> Iterator[LLM]:
    found = LLM.load(tiny_folder, options=LLMOptions(weights="fp32", threads=1))
    yield found
    found.close()


@pytest.mark.parametrize("text", [*TEXTS, LONG])
def test_bits_per_byte_equals_transformers(
    llm: LLM, tiny_folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow twin: the same folder in transformers, logits to nats to bits per byte, within 1e-4.

    Smaller pieces than the real ones, for the tiny context.
    """
    cut = partial(pieces, stride_bytes=256, context_bytes=256)
    monkeypatch.setattr(passages, "pieces", cut)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    encode, begin = llm.tokenizer.encode, llm.config.bos_id
    assert begin is not None
    nats = 0.0
    for context, piece in cut(text):
        ids, num_scored = [begin, *encode(context), *encode(piece)], len(encode(piece))
        with torch.no_grad():
            logprobs = theirs(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        places = torch.arange(len(ids) - num_scored, len(ids))
        nats -= logprobs[places - 1, torch.tensor(ids)[places]].sum().item()
    passage = Passage(suite="bpb", language="en", text=text)
    grade = passage.grade(passage.ask(llm))
    assert grade.bits is not None
    assert grade.num_bytes == len(text.encode())
    assert grade.bits / grade.num_bytes == pytest.approx(nats / math.log(2) / len(text.encode()), abs=1e-4)


def test_context_helps_nothing_to_add_bytes(llm: LLM) -> None:
    alone = llm.score(ScoreRequest(text=" and then"))
    after = llm.score(ScoreRequest(text=" and then", context="Now"))
    assert alone.num_bytes == after.num_bytes == 9
    assert len(alone.logprobs) == len(after.logprobs)
    assert alone.nats != after.nats
    with pytest.raises(InvalidRequestError, match="empty"):
        llm.score(ScoreRequest(text="", context="Now"))


def test_over_http_as_in_process(live_url: str, served_folder: Path) -> None:
    """One model behind a server and in process, the texts cut where no token spans the cut."""
    with httpx.Client(timeout=60) as client:
        name = client.get(f"{live_url}/v1/models").json()["data"][0]["id"]
        sampler = HTTPSampler(f"{live_url}/v1", name, client=client)
        llm = LLM.load(served_folder, options=LLMOptions(weights="fp32", threads=1))
        try:
            for context, text in [("", "A whole text."), ("Die Stadt", " hat Köln"), ("她说", "今天很好。")]:
                ours, theirs = (s.score(ScoreRequest(text=text, context=context)) for s in (llm, sampler))
                assert theirs.num_bytes == ours.num_bytes
                assert len(theirs.logprobs) == len(ours.logprobs)
                assert theirs.nats == pytest.approx(ours.nats, abs=1e-3)
        finally:
            llm.close()
        assert sampler.fingerprint.startswith(f"{live_url}/v1 {name} ")


def echoed(tokens: list[str], logprobs: list[float | None], offsets: list[int]) -> dict[str, Any]:
    lists = {"tokens": tokens, "token_logprobs": logprobs, "text_offset": offsets}
    return {"choices": [{"logprobs": lists}], "usage": {"prompt_tokens": len(tokens), "completion_tokens": 1}}


def test_only_the_texts_own_tokens_count() -> None:
    body = echoed(["ab", "c", "d", " new"], [None, -1.0, -2.0, -9.0], [0, 2, 3, 4])
    assert score_of(body, ScoreRequest(text="d", context="abc")).logprobs == (-2.0,)
    whole = score_of(body, ScoreRequest(text="abcd"))
    assert (whole.logprobs, whole.num_bytes) == ((-1.0, -2.0), 2)
    over = score_of(body, ScoreRequest(text="bcd", context="a"))
    assert over.num_bytes == 1 + 1 + 1 - 2  # what stands before the first probability is left out


def test_a_begin_token_shown_in_front_is_skipped() -> None:
    body = echoed(["<bos>", "ab", "c", "x"], [None, -3.0, -1.0, -9.0], [0, 5, 7, 8])
    found = score_of(body, ScoreRequest(text="abc"))
    assert (found.logprobs, found.num_bytes) == ((-3.0, -1.0), 3)


@pytest.mark.parametrize(
    "body",
    [{}, {"choices": [{"text": "x", "logprobs": None}]}, echoed(["new"], [-1.0], [0])],
)
def test_a_server_that_cannot_score_is_told_apart(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="echo"):
        score_of(body, ScoreRequest(text="a long text"))


def failing(statuses: list[int]) -> tuple[HTTPSampler, list[float]]:
    waits: list[float] = []

    def handle(request: httpx.Request) -> httpx.Response:
        status = statuses.pop(0)
        body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
        return httpx.Response(status, content=json.dumps(body))

    client = httpx.Client(transport=httpx.MockTransport(handle))
    return HTTPSampler("http://127.0.0.1:1/v1", "m", client=client, sleep=waits.append), waits


def test_what_may_pass_is_tried_again() -> None:
    sampler, waits = failing([429, 503, 200])
    assert sampler.chat(ChatRequest(messages=())).message.text == "hi"
    assert len(waits) == 2
    sampler, waits = failing([429] * 9)
    with pytest.raises(OverloadedError):
        sampler.chat(ChatRequest(messages=()))
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AuthenticationError), (404, NotFoundError), (400, InvalidRequestError), (500, EngineError)],
)
def test_what_stays_wrong_is_not_tried_again(status: int, error: type[Exception]) -> None:
    sampler, waits = failing([status])
    with pytest.raises(error):
        sampler.chat(ChatRequest(messages=()))
    assert waits == []
