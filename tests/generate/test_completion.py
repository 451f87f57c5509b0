"""Raw completions: echo, prompt scores, offsets; what lm-evaluation-harness reads from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.core.errors import ContextLengthError, InvalidRequestError
from smelt.core.sampling import FinishReason, SamplingParams
from smelt.generate.completion import LogprobLists, PromptText, PromptToken
from smelt.generate.events import AnswerEnd, AnswerText, AnswerUsage, TokenReport, TokenText
from smelt.generate.llm import LLM
from tests.generate.fakes import make_llm, random_logits, tiny_tokenizer


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = make_llm()
    yield llm
    llm.close()


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **fields})


def log_softmax(row: np.ndarray) -> np.ndarray:
    shifted = row.astype(np.float64) - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def test_echo_scores_the_prompt_as_the_model_does(llm: LLM) -> None:
    """The twin asks the model itself, token after token."""
    logits = random_logits(llm.tokenizer.vocab_size)
    ids = llm.tokenizer.encode("The quick brown 狐 jumps")
    events = list(llm.events(llm.prepare_completion(ids, params(top_logprobs=2, max_tokens=1), echo=True)))
    prompt = events[0]
    assert isinstance(prompt, PromptText)
    assert prompt.text == "The quick brown 狐 jumps"
    assert [token.token_id for token in prompt.tokens] == ids
    assert prompt.tokens[0].logprob is None
    for i in range(1, len(ids)):
        row = log_softmax(logits(ids[:i]))
        token = prompt.tokens[i]
        assert token.logprob == pytest.approx(row[ids[i]], abs=1e-4)
        assert [top.token_id for top in token.top] == np.argsort(-row, kind="stable")[:2].tolist()
        assert token.top[0].logprob == pytest.approx(row.max(), abs=1e-4)


def test_the_harness_counts_one_entry_a_token_and_one_more(llm: LLM) -> None:
    """lm-evaluation-harness drops the last entry as the generated one: an end token must be an entry too."""
    tokenizer = tiny_tokenizer()
    end = tokenizer.control_ids["<|end|>"]

    def wants_the_end(history: list[int]) -> np.ndarray:
        row = np.zeros(tokenizer.vocab_size, np.float32)
        row[end] = 9.0
        return row

    stopping = make_llm(wants_the_end)
    ids = tokenizer.encode("one two three")
    lists = LogprobLists()
    events = list(stopping.events(stopping.prepare_completion(ids, params(top_logprobs=1, max_tokens=1), echo=True)))
    for event in events:
        if isinstance(event, PromptText):
            lists.add(event.tokens)
        elif isinstance(event, AnswerText):
            lists.add(event.reports)
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(ids) + 1
    assert lists.tokens[-1] == "<|end|>"
    assert [event.reason for event in events if isinstance(event, AnswerEnd)] == [FinishReason.STOP]
    assert isinstance(events[-1], AnswerUsage) and events[-1].usage.completion_tokens == 0
    stopping.close()


def test_a_text_prompt_begins_with_the_hidden_begin_id(llm: LLM) -> None:
    prepared = llm.prepare_completion("Good day", params(top_logprobs=0, max_tokens=0), echo=True)
    bos = [] if llm.tokenizer.bos_id is None else [llm.tokenizer.bos_id]
    assert list(prepared.prompt_ids) == bos + llm.tokenizer.encode("Good day")
    events = list(llm.events(prepared))
    prompt = events[0]
    assert isinstance(prompt, PromptText)
    assert "".join(token.text for token in prompt.tokens) == prompt.text == "Good day"
    assert (prompt.tokens[0].logprob is None) == (not bos)
    assert [type(event) for event in events[1:]] == [AnswerEnd, AnswerUsage]


def test_echo_without_logprobs_is_text_only(llm: LLM) -> None:
    events = list(llm.events(llm.prepare_completion("Good day", params(), echo=True), n=2))
    assert events[:2] == [PromptText(0, "Good day"), PromptText(1, "Good day")]


def test_a_completion_never_shows_a_control_token_and_stops_at_stop_strings(llm: LLM) -> None:
    for seed in range(10):
        prepared = llm.prepare_completion("Once", params(temperature=2.0, seed=seed, max_tokens=30, stop=("e",)))
        text = "".join(event.text for event in llm.events(prepared) if isinstance(event, AnswerText))
        assert "<|" not in text and "e" not in text


def test_the_edge_of_the_context(llm: LLM) -> None:
    token = llm.tokenizer.encode("a")[:1]
    assert llm.prepare_completion(token * 1024, params(max_tokens=0), echo=True).max_new_tokens == 0
    with pytest.raises(ContextLengthError) as caught:
        llm.prepare_completion(token * 1024, params(max_tokens=1))
    assert caught.value.param == "prompt"
    with pytest.raises(ContextLengthError):
        llm.prepare_completion(token * 1025, params(max_tokens=0))


@pytest.mark.parametrize("ids", [[-1], [10**7], [], [5, "<|call|>"]])
def test_ids_that_are_no_prompt(llm: LLM, ids: list[Any]) -> None:
    known = [llm.tokenizer.control_ids[i] if isinstance(i, str) else i for i in ids]
    with pytest.raises(InvalidRequestError) as caught:
        llm.prepare_completion(known, params())
    assert caught.value.param == "prompt"


@given(st.text(max_size=30), st.data())
def test_offsets_are_places_in_the_text(text: str, data: st.DataObject) -> None:
    """Tokens of any bytes: each offset is where the token's first character begins."""
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)) | {0, len(raw)})
    pieces = [raw[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    lists = LogprobLists()
    for i, piece in enumerate(pieces):
        token = TokenText(i, piece.decode("utf-8", "replace"), piece, -1.0)
        lists.add([TokenReport(token)] if i % 2 else [PromptToken(i, token.text, piece, -1.0)])
    starts = [len(raw[:cut].decode("utf-8", "ignore")) for cut in cuts[:-1]]
    assert lists.text_offset == starts
    assert all(
        name == p.decode() for name, p in zip(lists.tokens, pieces, strict=True) if not name.startswith("bytes:")
    )


def test_a_part_of_a_character_is_named_by_its_bytes() -> None:
    lists = LogprobLists()
    lists.add([TokenReport(TokenText(1, "\ufffd", b"\xe4\xbd", -1.0))])
    assert lists.tokens == ["bytes:\\xe4\\xbd"]


def test_two_tokens_of_one_name_report_the_better_one() -> None:
    """A vocabulary with byte fallback has `e` twice, as a piece and as <0x65>, and both write the same text.

    The dictionary kept the one that came last, the worse one, so a greedy token was not its own best alternative.
    """
    best, other = TokenText(7, "e", b"e", -0.5), TokenText(3, "e", b"e", -4.0)
    lists = LogprobLists()
    lists.add([TokenReport(best, (best, TokenText(9, "x", b"x", -2.0), other))])
    assert lists.top_logprobs == [{"e": -0.5, "x": -2.0}]


def test_a_text_may_begin_after_the_end_of_another(llm: LLM) -> None:
    """lm-evaluation-harness puts the end token in front where a model has no begin token (Qwen), so that the first
    token has a probability too. It was refused as a control token, and no perplexity could be measured.
    """
    ids = llm.tokenizer.encode("one two")
    assert llm.config.eos_ids
    for front in llm.config.eos_ids:
        prepared = llm.prepare_completion([front, *ids], params(max_tokens=0, top_logprobs=1), echo=True)
        prompt = next(iter(llm.events(prepared)))
        assert isinstance(prompt, PromptText)
        assert prompt.text == "one two"
        assert [token.token_id for token in prompt.tokens] == [front, *ids]
        assert [token.logprob is None for token in prompt.tokens] == [True] + [False] * len(ids)
        with pytest.raises(InvalidRequestError, match=r"prompt\[2\]"):
            llm.prepare_completion([*ids[:2], front], params())
