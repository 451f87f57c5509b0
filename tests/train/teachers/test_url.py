"""Teachers behind URLs: scored texts, recorded answers, asked prompts; patience, counts and refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from smelt.chat import HouseRenderer
from smelt.checkpoint import open_checkpoint
from smelt.core.errors import DataError, InvalidRequestError, UnsupportedError
from smelt.data.batches import Batch
from smelt.data.chat_jsonl import encode_record, read_chat_jsonl
from smelt.data.packing import Piece, lay_out
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer
from smelt.train.distill.objective import Distillation
from smelt.train.objectives import CrossEntropy
from smelt.train.teachers.asking import Asker, Spent
from smelt.train.teachers.cache import CachedTeacher, build_cache
from smelt.train.teachers.cache_format import CacheSettings
from smelt.train.teachers.cache_scorer import ModelScorer, top
from smelt.train.teachers.online import DecoderTeacher
from smelt.train.teachers.text import AnswerSettings, AskReport, ask
from smelt.train.teachers.url import RecordedScorer, TokenNames, URLScorer, recorded_rows
from tests.tiny import random_tensors, tiny_config, tiny_tokenizer_files
from tests.train.distill.distilling import CPU

TEXT = "The weather in Berlin is fine. 今天北京的天气"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(tiny_tokenizer_files()[0]["tokenizer.json"].decode())


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Decoder:
    config = tiny_config("qwen3", num_layers=2, vocab_size=tokenizer.vocab_size)
    return Decoder.from_tensors(config, random_tensors(config, 3))


def answering(handle: Callable[[dict[str, Any]], Any], **options: Any) -> Asker:
    """An asker whose URL is a function: a dict is the answer, a number a status."""

    def reply(request: httpx.Request) -> httpx.Response:
        found = handle(json.loads(request.content))
        if isinstance(found, Exception):
            raise found
        return (
            httpx.Response(found, headers={"retry-after": "7"})
            if isinstance(found, int)
            else httpx.Response(200, json=found)
        )

    client = httpx.Client(transport=httpx.MockTransport(reply))
    sleep = options.pop("sleep", lambda _: None)
    asker = Asker("http://teacher/v1", "t", client=client, **options)
    asker.sleep = sleep
    return asker


def name_of(tokenizer: Tokenizer, token_id: int) -> str:
    controls = {number: name for name, number in tokenizer.control_ids.items()}
    if token_id in controls:
        return controls[token_id]
    raw = tokenizer.token_bytes(token_id)
    text = raw.decode("utf-8", "replace")
    return "bytes:" + "".join(f"\\x{b:02x}" for b in raw) if "\ufffd" in text else text


def scoring(model: Decoder, tokenizer: Tokenizer, k: int) -> Callable[[dict[str, Any]], Any]:
    """/completions with echo, as servers answer it: one generated token behind the prompt."""

    def handle(body: dict[str, Any]) -> dict[str, Any]:
        assert body["echo"] and body["logprobs"] == k
        with torch.no_grad():
            log_p = model(torch.tensor([body["prompt"]]))[0].log_softmax(-1)
        ids, log_probs, _ = top(log_p, k)
        tops: list[Any] = [None]
        for row, values in zip(ids.tolist(), log_probs.tolist(), strict=True):
            tops.append({name_of(tokenizer, i): v for i, v in zip(row, values, strict=True)})
        names = [name_of(tokenizer, i) for i in body["prompt"]] + ["!"]
        lists = {"tokens": names, "top_logprobs": tops, "token_logprobs": []}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        return {"choices": [{"logprobs": lists}], "usage": usage}

    return handle


class One:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def chunk(self, _: int) -> list[Batch]:
        return [self.batch]


def packed(tokenizer: Tokenizer, *texts: str) -> Batch:
    pieces = []
    for text in texts:
        ids = np.array(tokenizer.encode(text), np.int64)
        pieces.append(Piece(ids[:-1], ids[1:], np.zeros(len(ids) - 1, np.uint8)))
    return lay_out([pieces], sum(map(len, pieces)) + 3, 0)


def test_a_scored_text_is_the_top_k_of_the_same_model(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A packed row of two documents, with characters cut into bytes; against the model's own cache."""
    asker = answering(scoring(model, tokenizer, 8))
    batch = packed(tokenizer, TEXT, "What is the weather like in Paris?")
    settings = CacheSettings(method="top_k", k=8)
    folder = build_cache(tmp_path, URLScorer(asker, tokenizer), One(batch), 1, settings, on_report=lambda _: None)
    own = build_cache(
        tmp_path,
        ModelScorer(DecoderTeacher(model, tokenizer.vocab_size), CPU),
        One(batch),
        1,
        settings,
        on_report=lambda _: None,
    )
    student = Decoder.from_tensors(model.config, random_tensors(model.config, 5))
    losses = [float(Distillation(CachedTeacher(one))(student, batch, CPU).total.detach()) for one in (folder, own)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert asker.spent.num_requests == 2 and asker.spent.prompt_tokens == batch.num_learned + 2


def test_our_own_server_is_such_a_teacher(live_url: str, served_folder: Path) -> None:
    """A real server process scores a text; against the same folder in this process."""
    served = Tokenizer.load(served_folder)
    batch = packed(served, TEXT)
    with closing(Asker(f"{live_url}/v1", "gpt-4o-mini", attempts=2)) as asker:
        (found,) = URLScorer(asker, served).score([batch], CacheSettings(method="top_k", k=5))
    checkpoint = open_checkpoint(served_folder)
    own = DecoderTeacher(Decoder.from_tensors(checkpoint.config, checkpoint.tensors), served.vocab_size)
    (sought,) = ModelScorer(own, CPU).score([batch], CacheSettings(method="top_k", k=5))
    same = found.ids == sought.ids
    assert same.mean() > 0.8  # near ties change places, and unclear names count among the rest
    assert np.abs(found.weights - sought.weights)[same].max() < 1e-2
    assert asker.spent.prompt_tokens == batch.num_learned + 1


def test_names_that_could_be_several_ids_count_among_the_rest(tokenizer: Tokenizer) -> None:
    names = TokenNames(tokenizer)
    a = tokenizer.encode("a")[0]
    assert names.id_of("a") == a and names.id_of(f"token_id:{a}") == a
    assert names.id_of("\ufffd") is None
    assert names.id_of("<|end|>") == tokenizer.control_ids["<|end|>"]
    with pytest.raises(KeyError):
        names.id_of("no such token here")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda lists: lists["tokens"].__setitem__(1, "zebra"), "another vocabulary: id .* at place 1"),
        (lambda lists: lists["tokens"].__delitem__(slice(3, None)), "tokenizes differently"),
        (lambda lists: lists["top_logprobs"].__setitem__(2, {"zebra crossing": -1.0}), "'zebra crossing' is no token"),
        (lambda lists: lists["top_logprobs"].__setitem__(2, {}), "no alternatives"),
        (lambda lists: lists.clear(), "no log-probabilities"),
    ],
)
def test_another_vocabulary_or_api_is_refused(
    model: Decoder, tokenizer: Tokenizer, change: Callable[[dict[str, Any]], None], word: str
) -> None:
    plain = scoring(model, tokenizer, 4)

    def handle(body: dict[str, Any]) -> Any:
        answer = plain(body)
        change(answer["choices"][0]["logprobs"])
        return answer

    with pytest.raises(UnsupportedError, match=word):
        URLScorer(answering(handle), tokenizer).score([packed(tokenizer, TEXT)], CacheSettings(method="top_k", k=4))


def test_what_a_url_cannot_give_is_refused(tokenizer: Tokenizer) -> None:
    scorer = URLScorer(answering(lambda _: {}), tokenizer)
    for settings in (CacheSettings(), CacheSettings(method="top_k", temperature=2.0)):
        with pytest.raises(InvalidRequestError, match="top k at temperature 1"):
            scorer.score([], settings)


def test_it_waits_and_asks_again_but_not_for_ever() -> None:
    replies: list[Any] = [429, 503, httpx.ConnectError("gone"), {"usage": {"prompt_tokens": 5, "completion_tokens": 2}}]
    waits: list[float] = []
    spent = Spent(input_price=2.0, output_price=10.0)
    asker = answering(lambda _: replies.pop(0), sleep=waits.append, spent=spent)
    asker.post("/x", {})
    assert len(waits) == 3 and min(waits[:2]) >= 7 and 0 < waits[2] <= 2
    assert (spent.num_requests, spent.num_retries, spent.cost) == (1, 3, pytest.approx(3e-5))
    assert spent.line().startswith("1 requests (3 retried), 5 tokens in, 2 out, cost")
    count: list[int] = []
    with pytest.raises(DataError, match="no answer in 6 attempts"):
        answering(lambda _: count.append(1) or 500).post("/x", {})
    assert len(count) == 6
    with pytest.raises(InvalidRequestError, match="refused with 401"):
        answering(lambda _: count.append(1) or 401).post("/x", {})
    assert len(count) == 7


def test_no_more_questions_at_once_than_allowed() -> None:
    lock, running, most = threading.Lock(), [0], [0]
    gate = threading.Barrier(3)

    def work(item: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        gate.wait(10)
        with lock:
            running[0] -= 1
        return item

    assert list(answering(lambda _: {}, concurrency=3).each(work, range(9))) == list(range(9))
    assert most[0] == 3


def chat_answer(text: str, **fields: Any) -> dict[str, Any]:
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": text}, **fields}
    return {"model": "t-1", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}


def entry(tokenizer: Tokenizer, token_id: int, top_of: list[tuple[int, float]]) -> dict[str, Any]:
    def told(i: int, logprob: float) -> dict[str, Any]:
        return {"token": tokenizer.decode([i]), "bytes": list(tokenizer.token_bytes(i)), "logprob": logprob}

    return {**told(token_id, -0.5), "top_logprobs": [told(i, logprob) for i, logprob in top_of]}


def test_answers_with_log_probabilities_are_a_teacher(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Asked prompts to a file, the file to rows, the rows to a cache that a student learns from."""
    ids = tokenizer.encode("Fine today.")
    content = [entry(tokenizer, i, [(i, -0.2), (i + 1, -2.0)]) for i in ids]
    asker = answering(lambda body: chat_answer("Fine today.", logprobs={"content": content}))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    out = tmp_path / "answers.jsonl"
    assert ask(asker, prompts, out, AnswerSettings(top_logprobs=2), on_report=lambda _: None) == 1
    (record,) = read_chat_jsonl(out).records
    encoded = encode_record(HouseRenderer(tokenizer), record)
    key, rows = recorded_rows(encoded, record.logprobs, tokenizer, TokenNames(tokenizer))
    assert [row[0][0][0] for row in rows] == [*ids, tokenizer.control_ids["<|end|>"]]
    assert rows[0][0] == [(ids[0], -0.2), (ids[0] + 1, -2.0)]
    assert np.exp(rows[0][1]) == pytest.approx(1 - np.exp(-0.2) - np.exp(-2.0))
    assert rows[-1] == ([(tokenizer.control_ids["<|end|>"], 0.0)], -np.inf)
    scorer = RecordedScorer({key: rows}, tokenizer.vocab_size, "file")
    batch = lay_out([[Piece.of(encoded), Piece.of(encoded)]], 2 * len(encoded.ids), 0)
    folder = build_cache(tmp_path, scorer, One(batch), 1, CacheSettings(method="top_k", k=4), on_report=lambda _: None)
    signal = CachedTeacher(folder).signal(batch, CPU)
    assert signal.log_probs.exp().sum(-1).tolist()[-1] == pytest.approx(1.0, abs=1e-3)
    assert len(signal.log_probs) == 2 * len(rows)
    changed = [{**one, "bytes": [122]} for one in content]
    with pytest.raises(DataError, match="not those of this tokenizer"):
        recorded_rows(encoded, changed, tokenizer, TokenNames(tokenizer))


def test_a_token_without_log_probabilities_is_cross_entropy(
    tokenizer: Tokenizer, tmp_path: Path, model: Decoder
) -> None:
    batch = packed(tokenizer, TEXT)
    scorer = RecordedScorer({}, tokenizer.vocab_size, "file")
    folder = build_cache(tmp_path, scorer, One(batch), 1, CacheSettings(method="top_k", k=3), on_report=lambda _: None)
    found = [one(model, batch, CPU).total.detach() for one in (Distillation(CachedTeacher(folder)), CrossEntropy())]
    torch.testing.assert_close(*found)


def test_asking_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    asked: list[str] = []

    def handle(body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        asked.append(text)
        return 400 if text == "bad" else chat_answer(f"re: {text}")

    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    told = [{"messages": [{"role": "user", "content": text}]} for text in ("one", "two", "bad", "three")]
    told[1]["messages"].append({"role": "assistant", "content": "dropped"})
    prompts.write_text("\n".join(map(json.dumps, told[:2])))
    reports: list[AskReport] = []
    assert ask(answering(handle), prompts, out, on_report=reports.append) == 2
    assert reports[-1].num_done == 2 and "2 requests" in reports[-1].spent and reports[-1].left_s == 0
    with out.open("a") as file:
        file.write('{"messages": [{"ro')
    prompts.write_text("\n".join(map(json.dumps, told)))
    assert ask(answering(handle), prompts, out, on_report=reports.append) == 3
    assert sorted(asked) == ["bad", "one", "three", "two"]
    answers = [record.example.answer.text for record in read_chat_jsonl(out).records]
    assert answers == ["re: one", "re: two", "re: three"]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"messages": []}', '{"messages": [{"role": "assistant", "content": "x"}]}']
)
def test_prompts_that_are_none_are_refused(tmp_path: Path, line: str) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(line)
    with pytest.raises(DataError, match="line 1, messages"):
        ask(answering(lambda _: {}), prompts, tmp_path / "out.jsonl")
